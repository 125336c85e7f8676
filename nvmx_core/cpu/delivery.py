"""Delivery of an event through L2's IDT, with faults in the middle.

``deliver`` is a loop over "the event being delivered" (E1). Walking the IDT either completes, or exits, or
raises a second exception (E2), for which the decision is made in this order and no other (the SDM decides
interception before it merges):

1. E2 intercepted -> VM exit, IDT-vectoring information describes E1;
2. E1 was #DF -> triple fault;
3. the classes say double fault -> #DF takes E2's place (and may itself be intercepted);
4. E2 is delivered in place of E1, which is forgotten (D4).

Source: SDM, "Information for VM Exits That Occur During Event Delivery", "Interrupt 8 - Double Fault
Exception", "Details of Vectored-Event Injection".
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_MONITOR_TRAP_FLAG,
    SECONDARY_PML,
    SECONDARY_VIRTUALIZE_APIC_ACCESSES,
)
from nvmx_core.arch.events import (
    DF,
    DOUBLE_FAULT,
    DOUBLE_FAULT_INFO,
    ERROR_CODE_VALID,
    EXCEPTION_CLASS,
    GP,
    HARDWARE_EXCEPTION,
    NMI,
    NP,
    PF,
    PRIVILEGED_SOFTWARE_EXCEPTION,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    VECTOR_MASK,
    VECTORS_WITH_ERROR_CODE,
    event_class,
    merges_to_double_fault,
)
from nvmx_core.arch.exits import (
    APIC_ACCESS,
    APIC_ACCESS_IN_EVENT_DELIVERY,
    APIC_ACCESS_WRITE,
    EPT_FETCH,
    EPT_FINAL_TRANSLATION,
    EPT_LINEAR_VALID,
    EPT_MISCONFIG,
    EPT_READ,
    EPT_VIOLATION,
    EPT_WRITE,
    EXCEPTION_NMI,
    PML_FULL,
    TASK_SWITCH,
    TASK_SWITCH_BY_IDT_GATE,
    TRIPLE_FAULT,
    exception_exits,
    is_soft,
)
from nvmx_core.arch.fields import (
    CPU_BASED,
    GUEST_LINEAR_ADDRESS,
    GUEST_PHYSICAL_ADDRESS,
    POISON,
    SECONDARY,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    INTERRUPT_SHADOW,
    RFLAGS_IF,
    RFLAGS_NT,
    RFLAGS_RF,
    RFLAGS_TF,
)
from nvmx_core.cpu.processor_state import NO_EVENT, PENDING_MTF, ProcessorState
from nvmx_core.guests.memory import (
    GATE_NOT_PRESENT,
    GATE_PRIVILEGED,
    GATE_TASK,
    GDT,
    IDT_HIGH,
    IDT_LOW,
    STACK,
    TASK_GATE_SELECTOR,
    TSS,
    handler_rip,
    page_address,
)
from nvmx_core.journal import DELIVER

# Outcome of a memory access or of a walk through the IDT: done, exited, or the vector of a fault.
DONE: Final = -1
EXITED: Final = -2

PF_WRITE: Final = 1 << 1
PF_USER: Final = 1 << 2
PF_FETCH: Final = 1 << 4

_SYSTEM_PAGES: Final = 1 << GDT | 1 << TSS
"""What the processor reads for itself it reads as supervisor (SDM: Determination of Access Rights)."""

ERROR_IDT: Final = 1 << 1
ERROR_EXT: Final = 1 << 0

_HANDLER_CLEARS: Final = RFLAGS_IF | RFLAGS_TF | RFLAGS_NT | RFLAGS_RF


class Delivery(ProcessorState):
    """The layer that takes events through the IDT."""

    __slots__ = ()

    def raise_exception(
        self, info: int, error_code: int, payload: int, length: int, rf: int
    ) -> None:
        """Raise an exception outside of any delivery: exit (Y1-Y3) or deliver it.

        *payload* is the faulting address of #PF, the debug conditions of #DB, else 0; CR2 and DR6 change
        only if the exception does not exit (Y1).
        """
        vector = info & VECTOR_MASK
        if exception_exits(self.vmcs, vector, error_code):
            exit_length = length if is_soft(info) else POISON
            self.vm_exit(EXCEPTION_NMI, payload, exit_length, info, error_code, rf)
            return
        self.apply_payload(vector, payload)
        self.deliver(info, error_code, length, rf)

    def raise_fault(self, vector: int, payload: int = 0) -> None:
        """Raise a hardware exception of fault class at the current instruction."""
        has_error_code = not self.real_mode and VECTORS_WITH_ERROR_CODE >> vector & 1 != 0
        info = VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | vector
        error_code = POISON
        if has_error_code:
            info |= ERROR_CODE_VALID
            error_code = self.fault_error_code
        self.raise_exception(info, error_code, payload, 0, 1)

    def apply_payload(self, vector: int, payload: int) -> None:
        """The register writes of an exception that really happens: CR2 for #PF, DR6 for #DB."""
        if vector == PF:
            self.cr2 = payload
        elif payload:
            self.dr6 |= payload

    # -- the loop -------------------------------------------------------------------------------------

    def deliver(self, info: int, error_code: int, length: int, rf: int) -> None:
        """Deliver an event (an information word) through the IDT; see the essay at the head of the file.

        *length* is the instruction length of soft types, *rf* the RF value of the frame. Afterwards either
        the handler is about to run or a VM exit has happened.
        """
        self._begin(info, error_code, length, rf)
        while True:
            outcome = self._walk_idt()
            if outcome == DONE:
                self.event_info = NO_EVENT
                if self.vmcs[CPU_BASED] & CPU_MONITOR_TRAP_FLAG:
                    self.pending |= PENDING_MTF
                return
            if outcome == EXITED or not self._nest(outcome):
                return

    def _begin(self, info: int, error_code: int, length: int, rf: int) -> None:
        event_type = info & TYPE_MASK
        keeps_traps = (
            self.blocking & BLOCKING_BY_MOV_SS
            and is_soft(info)
            and event_type != PRIVILEGED_SOFTWARE_EXCEPTION << TYPE_SHIFT
        )
        if not keeps_traps:
            self.pending_dbg = 0
        self.activity = ACTIVE
        self.blocking &= ~INTERRUPT_SHADOW
        if event_type == NMI << TYPE_SHIFT:
            self.blocking |= BLOCKING_BY_NMI
        self.event_info = info
        self.event_error_code = error_code
        self.event_length = length
        self.event_rf = rf
        if self.delivery_armed:
            self._announce()

    def _announce(self) -> None:
        """Let the arrivals tied to a delivery happen.

        An arrival in a delivery that keeps a debug trap would have to be seen before that trap, which no
        hypervisor under us could arrange; it waits until the trap is gone.
        """
        if not self.pending_dbg:
            self.delivery_armed = False
            self.platform.in_delivery()

    def _nest(self, vector: int) -> bool:
        """Decide about exception E2 raised while E1 is delivered; False when it ended in a VM exit."""
        has_error_code = vector != DF and not self.real_mode
        error_code = self.fault_error_code if has_error_code else POISON
        info = VALID | HARDWARE_EXCEPTION << TYPE_SHIFT | vector
        if has_error_code:
            info |= ERROR_CODE_VALID
        payload = self.fault_payload if vector == PF else 0
        if exception_exits(self.vmcs, vector, error_code):
            self.vm_exit(EXCEPTION_NMI, payload, POISON, info, error_code, 1)
            return False
        if vector == PF:
            self.cr2 = payload
        first = event_class(self.event_info)
        if first == DOUBLE_FAULT:
            self.event_info = NO_EVENT
            self.vm_exit(TRIPLE_FAULT)
            return False
        if merges_to_double_fault(first, EXCEPTION_CLASS[vector]):
            info = DOUBLE_FAULT_INFO
            error_code = 0
            if exception_exits(self.vmcs, DF, 0):
                self.event_info = NO_EVENT
                self.vm_exit(EXCEPTION_NMI, 0, POISON, info, error_code, 1)
                return False
        self.event_info = info
        self.event_error_code = error_code
        self.event_length = 0
        self.event_rf = 1
        self.pending_dbg = 0
        if self.delivery_armed:
            self._announce()
        return True

    # -- one walk -------------------------------------------------------------------------------------

    def _walk_idt(self) -> int:
        """Read the gate, check it, push the frame, enter the handler."""
        info = self.event_info
        vector = info & VECTOR_MASK
        memory = self.memory
        if self.real_mode:
            if self.unusual_pages:
                outcome = self._touch_all((IDT_LOW,), (STACK,))
                if outcome != DONE:
                    return outcome
        else:
            idt_page = IDT_LOW if vector < 32 else IDT_HIGH
            unusual = self.unusual_pages
            if unusual or memory.gates or (self.cpl and is_soft(info)):
                outcome = self._walk_unusual_gate(info, vector, idt_page)
                if outcome != DONE:
                    return outcome
        self._push_and_enter(info, vector)
        return DONE

    def _walk_unusual_gate(self, info: int, vector: int, idt_page: int) -> int:
        outcome = self.touch(idt_page, EPT_READ)
        if outcome != DONE:
            return outcome
        outcome = self._check_gate(info, vector)
        if outcome != DONE:
            return outcome
        if self.cpl:
            return self._touch_all((GDT, TSS), (STACK,))
        return self._touch_all((GDT,), (STACK,))

    def _touch_all(self, read: tuple[int, ...], written: tuple[int, ...]) -> int:
        for page in read:
            outcome = self.touch(page, EPT_READ)
            if outcome != DONE:
                return outcome
        for page in written:
            outcome = self.touch(page, EPT_WRITE)
            if outcome != DONE:
                return outcome
        return DONE

    def _check_gate(self, info: int, vector: int) -> int:
        gate = self.memory.gate(vector)
        event_type = info & TYPE_MASK
        soft = is_soft(info)
        checks_dpl = soft and event_type != PRIVILEGED_SOFTWARE_EXCEPTION << TYPE_SHIFT
        external = 0 if checks_dpl else ERROR_EXT
        self.fault_error_code = vector << 3 | ERROR_IDT | external
        if checks_dpl and self.cpl and (gate == GATE_PRIVILEGED or _is_privileged(vector)):
            return GP
        if gate == GATE_NOT_PRESENT:
            return NP
        if gate == GATE_TASK:
            # The descriptor of the new TSS is looked at before the exit.
            outcome = self.touch(GDT, EPT_READ)
            if outcome != DONE:
                return outcome
            self.vm_exit(TASK_SWITCH, TASK_GATE_SELECTOR | TASK_SWITCH_BY_IDT_GATE)
            return EXITED
        return DONE

    def _push_and_enter(self, info: int, vector: int) -> None:
        memory = self.memory
        return_rip = self.rip + self.event_length
        if info & ERROR_CODE_VALID:
            error_code = self.event_error_code
        else:
            error_code = POISON
        frames = memory.frames
        if len(frames) > self.rsp:
            del frames[self.rsp :]
        frames.append((return_rip, self.rflags, self.cpl))
        pushed = self.rflags
        if self.event_rf:
            pushed |= RFLAGS_RF
        self.rsp = len(frames)
        self.rip = handler_rip(vector)
        self.rflags &= ~_HANDLER_CLEARS
        self.cpl = 0
        self.journal.append((DELIVER, vector, error_code, return_rip, pushed, self.cr2, self.dr6))

    # -- memory ---------------------------------------------------------------------------------------

    def touch(self, page: int, access: int) -> int:
        """Access a page: DONE, EXITED, or the vector of the fault with its error code and address.

        *access* is EPT_READ, EPT_WRITE or EPT_FETCH. L2's own tables come first (#PF), then L1's or
        L0's second level, then APIC-access virtualization. Source: SDM, "EPT-Induced VM Exits", "Priority of
        APIC-Access VM Exits".
        """
        bit = 1 << page
        if not self.unusual_pages & bit:
            return DONE
        if self.pt_absent & bit and not self.real_mode:
            error_code = PF_WRITE if access == EPT_WRITE else 0
            if access == EPT_FETCH:
                error_code = PF_FETCH
            if self.cpl and self.event_info == NO_EVENT and not bit & _SYSTEM_PAGES:
                error_code |= PF_USER
            self.fault_error_code = error_code
            self.fault_payload = page_address(page)
            return PF
        return self._touch_physical(page, bit, access)

    def _touch_physical(self, page: int, bit: int, access: int) -> int:
        vmcs = self.vmcs
        secondary = vmcs[SECONDARY]
        if (self.ept_absent | self.ept_misconfigured) & bit or (
            access == EPT_WRITE and self.ept_read_only & bit
        ):
            address = page_address(page)
            vmcs[GUEST_LINEAR_ADDRESS] = address
            vmcs[GUEST_PHYSICAL_ADDRESS] = address
            if self.ept_misconfigured & bit:
                self.vm_exit(EPT_MISCONFIG, rf=1)
            else:
                self.vm_exit(EPT_VIOLATION, access | EPT_LINEAR_VALID | EPT_FINAL_TRANSLATION, rf=1)
            return EXITED
        if access == EPT_WRITE and self.memory.pml_full and secondary & SECONDARY_PML:
            vmcs[GUEST_LINEAR_ADDRESS] = POISON
            vmcs[GUEST_PHYSICAL_ADDRESS] = POISON
            self.vm_exit(PML_FULL, rf=1)
            return EXITED
        if (
            page == self.memory.apic_page
            and access != EPT_FETCH
            and secondary & SECONDARY_VIRTUALIZE_APIC_ACCESSES
        ):
            if self.event_info:
                kind = APIC_ACCESS_IN_EVENT_DELIVERY
            else:
                kind = APIC_ACCESS_WRITE if access == EPT_WRITE else 0
            self.vm_exit(APIC_ACCESS, kind, rf=1)
            return EXITED
        return DONE


def _is_privileged(vector: int) -> bool:
    """Whether the gate of a vector has DPL 0 unless a scenario changes it: all exceptions but #BP, #OF."""
    return vector < 32 and vector not in (3, 4)
