"""The state of one vCPU in L0, named as in KVM, and the predicates on it.

``needs_reinjection`` and the blocking predicates are asked everywhere; queues hold whole interruption
words, so that an event comes back with exactly the type it had (X4).

Source: Linux, struct kvm_vcpu_arch, struct nested_vmx; the table "State per vCPU" behind rules S1-S9.
"""

from typing import Final

from nvmx_core.arch.controls import (
    EXIT_ACK_INTR_ON_EXIT,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_VIRTUAL_NMIS,
)
from nvmx_core.arch.exits import exception_exits
from nvmx_core.arch.fields import (
    EXIT_CONTROLS,
    FIELD_COUNT,
    GUEST_INTERRUPTIBILITY,
    GUEST_RFLAGS,
    PIN_BASED,
    POISON,
    Vmcs,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_MOV_SS,
    BLOCKING_BY_NMI,
    BLOCKING_BY_STI,
    INTERRUPT_SHADOW,
    RFLAGS_IF,
)
from nvmx_core.cpu.apic import NO_VECTOR, LocalApic
from nvmx_core.cpu.processor import Processor
from nvmx_core.guests.l1 import L1
from nvmx_core.guests.memory import L2Memory
from nvmx_core.journal import Record
from nvmx_core.l0.log import SELF_CHECK, USERSPACE, L0Record
from nvmx_core.l0.reach import REACH_COUNT, USERSPACE_INTERRUPT
from nvmx_core.scenario.config import Config

TIMER_OFF: Final = -1

_VMCS02_CONSTANT_STATE: Final[Vmcs] = [0] * FIELD_COUNT
"""vmcs02 before the first entry; no entry changes the exit controls, see ``prepare_vmcs02``."""
_VMCS02_CONSTANT_STATE[EXIT_CONTROLS] = EXIT_ACK_INTR_ON_EXIT


class Vcpu:
    """Queues, requests and modes of one vCPU; the lowest layer of L0.

    The words of an event (``_info``, ``_error_code`` …) count only while its ``_pending`` or ``_injected``
    flag is set.
    """

    __slots__ = (
        "alarmed",
        "apic",
        "asks_userspace",
        "cancel_armed",
        "config",
        "cpu",
        "dead",
        "entered_info",
        "entered_rf",
        "entry_ticks",
        "exception_error_code",
        "exception_info",
        "exception_injected",
        "exception_length",
        "exception_payload",
        "exception_pending",
        "exception_trap",
        "guest_mode",
        "in_smm",
        "init_pending",
        "interrupt_info",
        "interrupt_injected",
        "interrupt_length",
        "journal",
        "kick_after_entry",
        "l1",
        "l1_nmi_blocked",
        "log",
        "memory",
        "monitor_armed",
        "mp_state",
        "mtf_injected",
        "mtf_pending",
        "nested_run_pending",
        "nmi_injected",
        "nmi_pending",
        "own_mtf",
        "physical_nmi_blocked",
        "processor_controls02",
        "reach",
        "request_event",
        "request_triple_fault",
        "restarts_instruction",
        "round_trips",
        "sipi_vector",
        "smi_pending",
        "smm_guest_mode",
        "soft_event_holds_traps",
        "timer",
        "timer_expired",
        "userspace_exit",
        "userspace_vector",
        "vmcs02",
        "vmcs12",
        "vmexit_error_code",
        "vmexit_info",
        "vmexit_length",
        "vmexit_payload",
        "vmexit_pending",
        "vmexit_trap",
    )

    def __init__(
        self, config: Config, cpu: Processor, memory: L2Memory, l1: L1, journal: list[Record]
    ) -> None:
        self.config: Final = config
        self.cpu: Final = cpu
        self.memory: Final = memory
        self.l1: Final = l1
        self.journal: Final = journal
        self.log: list[L0Record] = []
        self.reach: list[int] = [0] * REACH_COUNT
        self.apic: LocalApic = LocalApic()
        self.vmcs12: Vmcs = l1.vmcs
        self.vmcs02: Vmcs = _VMCS02_CONSTANT_STATE[:]
        self.processor_controls02: int = 0
        self.guest_mode: bool = False
        self.nested_run_pending: bool = False
        self.mp_state: int = ACTIVE
        self.monitor_armed: bool = False
        self.in_smm: bool = False
        self.smm_guest_mode: bool = False
        self.l1_nmi_blocked: bool = False
        self.physical_nmi_blocked: bool = False
        self.nmi_pending: bool = False
        self.smi_pending: bool = False
        self.init_pending: bool = False
        self.sipi_vector: int = NO_VECTOR
        self.mtf_pending: bool = False
        self.own_mtf: bool = False
        self.timer: int = TIMER_OFF
        self.timer_expired: bool = False
        self.entry_ticks: int = 0
        self.request_event: bool = False
        self.request_triple_fault: bool = False
        self.cancel_armed: bool = False
        self.userspace_exit: bool = False
        self.asks_userspace: bool = False
        self.userspace_vector: int = NO_VECTOR
        self.kick_after_entry: bool = False
        self.restarts_instruction: bool = False
        self.entered_info: int = 0
        self.entered_rf: int = 0
        self.round_trips: int = 0
        self.dead: bool = False
        self.alarmed: bool = False
        self.exception_pending: bool = False
        self.exception_injected: bool = False
        self.exception_info: int = 0
        self.exception_error_code: int = POISON
        self.exception_payload: int = 0
        self.exception_length: int = 0
        self.exception_trap: bool = False
        self.vmexit_pending: bool = False
        self.vmexit_info: int = 0
        self.vmexit_error_code: int = POISON
        self.vmexit_payload: int = 0
        self.vmexit_length: int = POISON
        self.vmexit_trap: bool = False
        self.nmi_injected: bool = False
        self.interrupt_injected: bool = False
        self.interrupt_info: int = 0
        self.interrupt_length: int = 0
        self.mtf_injected: bool = False
        self.soft_event_holds_traps: bool = False

    def clear_queues(self) -> None:
        """Forget every queued exception and every event in flight (nested exit, Y5)."""
        self.exception_pending = False
        self.exception_injected = False
        self.vmexit_pending = False
        self.nmi_injected = False
        self.interrupt_injected = False
        self.mtf_injected = False
        self.soft_event_holds_traps = False

    # -- predicates -----------------------------------------------------------------------------------

    def needs_reinjection(self) -> bool:
        """Whether an event that was in the entry field has not been delivered yet."""
        return self.exception_injected or self.interrupt_injected or self.nmi_injected

    def l1_wants_interrupts(self) -> bool:
        """Whether an external interrupt is an exit for L1."""
        return self.vmcs12[PIN_BASED] & PIN_EXT_INTR_EXITING != 0

    def l1_wants_nmis(self) -> bool:
        """Whether an NMI is an exit for L1."""
        return self.vmcs12[PIN_BASED] & PIN_NMI_EXITING != 0

    def l1_uses_virtual_nmis(self) -> bool:
        """Whether bit 3 of L2's interruptibility state is virtual-NMI blocking."""
        return self.vmcs12[PIN_BASED] & PIN_VIRTUAL_NMIS != 0

    def l1_intercepts(self, vector: int, error_code: int) -> bool:
        """Whether L1 wants an exception."""
        return exception_exits(self.vmcs12, vector, error_code)

    def nmi_blocked(self) -> bool:
        """Whether an NMI must wait: the table of NMI modes (B4, N1, N2)."""
        if self.l1_wants_nmis():
            return not self.l1_uses_virtual_nmis() and self.physical_nmi_blocked
        blocking = self.vmcs02[GUEST_INTERRUPTIBILITY]
        if blocking & (BLOCKING_BY_NMI | BLOCKING_BY_MOV_SS):
            return True
        return self.config.caps.sti_blocks_nmi and blocking & BLOCKING_BY_STI != 0

    def l2_blocking(self, blocking: int) -> int:
        """L2's interruptibility state as L1 knows it, from what vmcs02 shows.

        With NMI exiting but without virtual NMIs bit 3 is kept by L0, see ``prepare_nmi_blocking``.
        """
        if self.l1_wants_nmis() and not self.l1_uses_virtual_nmis():
            blocking &= ~BLOCKING_BY_NMI
            if self.physical_nmi_blocked:
                blocking |= BLOCKING_BY_NMI
        return blocking

    def interrupts_open(self) -> bool:
        """IF = 1 and no interrupt shadow in L2, as of the last hardware exit."""
        vmcs02 = self.vmcs02
        return (
            vmcs02[GUEST_RFLAGS] & RFLAGS_IF != 0
            and not vmcs02[GUEST_INTERRUPTIBILITY] & INTERRUPT_SHADOW
        )

    def interrupt_blocked(self) -> bool:
        """Whether an interrupt must wait; one that L1 wants as an exit never does (B3)."""
        return not self.l1_wants_interrupts() and not self.interrupts_open()

    def has_interrupt(self) -> bool:
        """Whether an interrupt is there: pending in the APIC, or handed over by userspace."""
        apic = self.apic
        return self.userspace_vector >= 0 or (apic.irr != 0 and apic.deliverable() >= 0)

    def must_ask_userspace(self) -> bool:
        """With an APIC in userspace L0 knows of an interrupt, but not its vector.

        True when the vector is wanted and not there yet; the loop is then left for userspace (KVM's
        KVM_EXIT_IRQ_WINDOW_OPEN), which acknowledges at its APIC and comes back with the vector
        (KVM_INTERRUPT), and everything is looked at again.
        """
        if self.config.in_kernel_apic or self.userspace_vector >= 0:
            return False
        self.asks_userspace = True
        self.request_event = True
        return True

    def queue_userspace_interrupt(self, vector: int) -> None:
        """Userspace has acknowledged an interrupt at its APIC and hands it over (KVM_INTERRUPT)."""
        self.asks_userspace = False
        self.userspace_vector = vector
        self.request_event = True
        self.reach[USERSPACE_INTERRUPT] += 1
        self.log.append((USERSPACE, len(self.journal), vector))

    def take_interrupt(self) -> int:
        """The vector of the interrupt that is there, acknowledged: by userspace already, or here."""
        if self.userspace_vector >= 0:
            vector = self.userspace_vector
            self.userspace_vector = NO_VECTOR
            return vector
        vector = self.apic.deliverable()
        self.apic.acknowledge(vector)
        return vector

    def self_check(self, code: int) -> None:
        """L0 found a state that must not be, its WARN_ON."""
        self.alarmed = True
        self.log.append((SELF_CHECK, len(self.journal), code))
