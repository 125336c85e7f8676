"""How L2's instructions become code, and what real code finds on the stack."""

from typing import Final

from nvmx_core.arch.controls import SECONDARY_VIRTUALIZE_APIC_ACCESSES
from nvmx_core.arch.fields import SECONDARY
from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.arch.state import RFLAGS_NT
from nvmx_core.guests.memory import (
    CODE,
    CODE_BASE,
    GDT,
    HANDLER,
    NO_PAGE,
    PAGE_COUNT,
    STACK,
    page_address,
)
from nvmx_fuzz.realise import l1_program as l1
from nvmx_fuzz.realise import layout, schedule
from nvmx_fuzz.realise.code import CODE as INSTRUCTION_CODE
from nvmx_fuzz.realise.recording import IRET, POP_FLAGS, POP_SS, Recording
from nvmx_fuzz.realise.vmcs import NotRealisableError, default_stack

_MONITOR: Final = INSTRUCTION_INDEX["monitor"]
_MOV_CR3: Final = INSTRUCTION_INDEX["mov-cr3"]
_MWAIT: Final = INSTRUCTION_INDEX["mwait"]


class L2Recorder(Recording):
    """The layer that writes L2's code and operands."""

    def _l2_table_step(self, op: int, a: int, b: int) -> None:
        super()._l2_table_step(op, a, b)
        if not self.l1_is_current():
            for address, value in self.tables.l2_changes(self.memory):
                self.schedule.append((schedule.POKE, address, value))
            self.schedule.append((schedule.FLUSH, 0, 0))
            self._flush()

    def execute(self, instruction: int, operand: int) -> None:
        code = INSTRUCTION_CODE[instruction]
        if code.reason:
            raise NotRealisableError(code.reason)
        cpu = self.cpu
        rip = cpu.rip
        self._place_code(rip, code.encode(cpu.cpl, operand))
        self._check_registers(instruction)
        if code.reads_stack or code.reads_gdt:
            self._check_pages(code.reads_stack, code.reads_gdt)
            self._place_operand(instruction, operand)
        apic_page = self.memory.apic_page
        virtualizes = cpu.vmcs[SECONDARY] & SECONDARY_VIRTUALIZE_APIC_ACCESSES
        if virtualizes and rip >> 12 == page_address(max(apic_page, 0)) >> 12 and apic_page >= 0:
            raise NotRealisableError("fetch-from-apic-page")
        self.schedule.append((schedule.RUN, rip, 0))
        self.instruction = instruction
        self.l2_cpl = cpu.cpl
        super().execute(instruction, operand)
        self._follow()

    def _place_code(self, rip: int, code: bytes) -> None:
        page = rip - page_address(CODE) >> 12
        if rip < CODE_BASE or page > HANDLER - CODE or (rip + len(code) - 1 ^ rip) >> 12:
            raise NotRealisableError("rip-outside-of-code")
        for offset, value in enumerate(code):
            if self.bytes_of_stint.get(rip + offset, value) != value:
                self._poke(rip, code)
                return
        for offset, value in enumerate(code):
            if (
                rip + offset not in self.bytes_of_stint
            ):  # what is there was put there at the entry, or later
                self.bytes_of_stint[rip + offset] = value
                self.code_of_stint.append((l1.STORE_BYTES, rip + offset, value, 1))

    def _poke(self, address: int, content: bytes) -> None:
        for offset, value in enumerate(content):
            self.bytes_of_stint[address + offset] = value
            self.schedule.append((schedule.POKE_BYTE, address + offset, value))

    def _check_registers(self, instruction: int) -> None:
        """Registers that an earlier instruction of this stay in L2 has changed."""
        code = INSTRUCTION_CODE[instruction]
        executes = self.cpu.would_execute(instruction)
        if code.needs_eax and self.eax_changed:
            raise NotRealisableError("register-changed-by-l2")
        if executes and instruction == _MWAIT and self.monitored:
            raise NotRealisableError("mwait-behind-monitor")
        self.eax_changed |= executes and code.changes_eax
        self.monitored |= executes and instruction == _MONITOR
        if executes and instruction == _MOV_CR3:
            self._flush()

    def _flush(self) -> None:
        """Note that L2's translations go: a monitor that was armed before may be lost (P14)."""
        if self.monitored:
            self.entries[-1] = self.entries[-1]._replace(monitor_was_lost=True)

    def _check_pages(self, stack: bool, gdt: bool) -> None:
        memory = self.memory
        unusual = memory.l2_absent | memory.ept12_absent | memory.ept12_misconfigured
        if memory.apic_page != NO_PAGE and memory.apic_page < PAGE_COUNT:
            unusual |= 1 << memory.apic_page
        if gdt and unusual >> GDT & 1:
            raise NotRealisableError("instruction-reads-gdt")
        if stack and unusual >> STACK & 1:
            raise NotRealisableError("instruction-reads-stack")

    def _place_operand(self, instruction: int, operand: int) -> None:
        """Put on L2's stack what the instruction is to pop; the model's frames have no bytes."""
        cpu = self.cpu
        if instruction == POP_FLAGS:
            flags = 2 | (operand & 1) << 9 | (operand >> 1 & 1) << 8 | (operand >> 2 & 1) << 11
            flags |= cpu.rflags & ~0x10B02
            words = [flags]
        elif instruction == POP_SS:
            words = [layout.L2_USER_DATA_SELECTOR if cpu.cpl else layout.L2_STACK_SELECTOR]
        elif instruction == IRET and not cpu.rflags & RFLAGS_NT:
            words = self._frame()
        else:
            return
        for index, word in enumerate(words):
            self.schedule.append((schedule.POKE, self.esp + 4 * index, word))

    def _frame(self) -> list[int]:
        cpu = self.cpu
        depth = min(cpu.rsp, len(self.memory.frames))
        rip, rflags, cpl = CODE_BASE, 0x202, cpu.cpl
        if depth:
            rip, rflags, cpl = self.memory.frames[depth - 1]
        self.return_cpl = cpl
        if rip >> 32:
            raise NotRealisableError("rip-outside-of-code")
        if cpl < cpu.cpl:
            return [rip, 0, rflags]  # a null selector: #GP(0), as for a return to more privilege
        if cpl == 0:
            return [rip, layout.L2_CODE_SELECTOR, rflags]
        frame = [rip, layout.L2_USER_CODE_SELECTOR, rflags]
        if cpu.cpl == 0:
            frame += [default_stack(3), layout.L2_USER_DATA_SELECTOR]
        return frame
