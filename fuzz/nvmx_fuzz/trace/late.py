"""An exit for an interrupt that came late: O11 and P12, as far as a trace shows them.

Instructions of L2 do not show, but exits do. When L1 gets exit EXTERNAL_INTERRUPT with vector V, the
trace is looked back: V came to the APIC at some line, and if L2 *began an instruction* after that and
after a further entry, then the exit was owed before. That an instruction began shows in an exit with no
event in delivery, for a reason that belongs to an instruction or to fetching one (ranks P13, P14).

What must be known before the rule may speak; each line answers a way in which a correct L0 would look wrong:

- L1 asks for these exits, and V was not blocked by the priority of L1's APIC: the exit itself shows both,
  for while L2 runs neither changes, unless somebody uses the APIC (`ApicUse`, an exit that L0 emulates):
  then silence.
- V was pending since that line. Only L1 could have taken it in between, so an arrival before the last
  entry of L1 counts only where L0 injects L1's interrupts itself, which shows, or where L0 announces an
  immediate exit for it.
- L0 could know of V at the entry. An arrival in the vCPU's own thread is over by then; one from another
  processor may fall between L0's last look and the entry, so the first entry after it does not count.
- A shadow of STI or MOV SS may hold the exit back for one instruction (B3). An injection ends shadows
  (O4); without one it takes two instructions.
- No event was lost, and nobody else had the vCPU: the follower forgets the arrivals then.
"""

from collections import deque
from typing import Final, NamedTuple

from nvmx_core.arch.exits import (
    APIC_ACCESS,
    APIC_WRITE,
    CR_ACCESS,
    EOI_INDUCED,
    EPT_MISCONFIG,
    EPT_VIOLATION,
    INSTRUCTION_EXITS,
    IO_INSTRUCTION,
    TASK_SWITCH,
    TPR_BELOW_THRESHOLD,
    WRMSR_EXIT,
)

Line = tuple[int, bytes]
"""The number of a line, from 1, and what stands in it."""

_INSTRUCTION_BEGAN: Final = INSTRUCTION_EXITS | {EPT_VIOLATION}
_ASYNCHRONOUS: Final = 1 << 16
"""Qualification of an EPT violation that no instruction caused."""

_MAY_USE_APIC: Final = frozenset(
    {
        TASK_SWITCH,
        CR_ACCESS,
        IO_INSTRUCTION,
        WRMSR_EXIT,
        TPR_BELOW_THRESHOLD,
        APIC_ACCESS,
        EOI_INDUCED,
        EPT_MISCONFIG,
        APIC_WRITE,
    }
)
"""Exits of L2 that L0 may finish by writing EOI or TPR for it, in memory, a register or an MSR."""

_BEGUN_MAX: Final = 64


class Evidence(NamedTuple):
    """Where it shows: the arrival, the entry after it, the exit of an instruction that began too early."""

    arrival: Line
    entry: Line
    exit: Line
    is_first_entry: bool


class _Pending(NamedTuple):
    arrival: Line
    stay: int
    entries: int
    is_own: bool


class _Begun(NamedTuple):
    entries: int
    entry: Line
    exit: Line
    is_injecting: bool


class Arrivals:
    """The interrupts that came for one vCPU, and what L2 did since L1 entered it."""

    def __init__(self) -> None:
        """Know of nothing."""
        self._pending: dict[int, _Pending] = {}
        self._begun: deque[_Begun] = deque(maxlen=_BEGUN_MAX)
        self._stay = 0
        self._entries = 0
        self._entry: Line = (0, b"")
        self._is_injecting = False
        self._is_announced = False
        self._is_apic_quiet = True
        self._is_software_injected = False
        self._is_begun = False

    def forget(self) -> None:
        """Events were lost, or others had the vCPU."""
        self._pending.clear()
        self.begin_stay()
        self._is_apic_quiet = False

    def arrive(self, vector: int, line: Line, is_own: bool) -> None:
        """The vector comes to the APIC, in the vCPU's own thread or in another."""
        self._pending[vector] = _Pending(line, self._stay, self._entries, is_own)

    def taken(self, vector: int, is_by_l1: bool) -> None:
        """L0 injects the vector, which is pending no more; into L1: then it shows that L0 does it."""
        self._pending.pop(vector, None)
        self._is_software_injected |= is_by_l1

    def taken_silently(self, vector: int) -> None:
        """The processor itself may give the vector to L1: whether it is still pending is not known."""
        self._pending.pop(vector, None)

    def begin_stay(self, is_seen: bool = False) -> None:
        """L1 enters L2, which is seen; or L2 runs, and what was before is not known."""
        self._is_begun = is_seen
        self._begun.clear()
        self._stay += 1
        self._entries = 0
        self._is_announced = False
        self._is_apic_quiet = True

    def use_apic(self) -> None:
        """The priority of the APIC may have changed."""
        self._is_apic_quiet = False

    def enter(self, line: Line, is_injecting: bool, immediate: bool) -> None:
        """L0 enters L2."""
        self._entries += 1
        self._entry = line
        self._is_injecting = is_injecting
        if self._entries == 1:
            self._is_announced = immediate

    def exit(self, reason: int, qualification: int, is_delivering: bool, line: Line) -> None:
        """An exit of L2 that L0 may handle; *is_delivering* also when that is not known."""
        if reason in _MAY_USE_APIC:
            self._is_apic_quiet = False
        if is_delivering or reason not in _INSTRUCTION_BEGAN or not self._entries:
            return
        if reason == EPT_VIOLATION and qualification & _ASYNCHRONOUS:
            return
        self._begun.append(_Begun(self._entries, self._entry, line, self._is_injecting))

    def interrupt_exit(self, vector: int) -> Evidence | None:
        """L1 gets its exit for the vector; the evidence that it came late, if there is any."""
        pending = self._pending.pop(vector, None)
        if pending is None or not self._is_apic_quiet:
            return None
        entries = pending.entries
        if pending.stay != self._stay:
            if not (self._is_software_injected or self._is_announced):
                return None
            entries = 0
        if not pending.is_own:
            entries += 1
        begun = [instruction for instruction in self._begun if instruction.entries > entries]
        if not begun or (len(begun) == 1 and not begun[0].is_injecting):
            return None
        last = begun[-1]
        return Evidence(
            pending.arrival,
            last.entry,
            last.exit,
            is_first_entry=self._is_begun and last.entries == 1,
        )
