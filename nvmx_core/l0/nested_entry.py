"""The nested entry: L1's VMLAUNCH or VMRESUME, and the building of vmcs02.

Once the checks on controls have passed, ``nested_run_pending`` says that L2 must run before anything
happens to L1; it is cleared when the processor has entered vmcs02. RSM and the restoring of a vCPU enter
guest mode the same way, without an event from vmcs12.

Source: Linux, nested_vmx_run, nested_vmx_enter_non_root_mode, prepare_vmcs02.
"""

from typing import Final

from nvmx_core.arch.controls import (
    CPU_HLT_EXITING,
    CPU_MONITOR_EXITING,
    CPU_RDPMC_EXITING,
    CPU_SECONDARY_CONTROLS,
    CPU_TPR_SHADOW,
    CPU_UNCOND_IO_EXITING,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_POSTED_INTR,
    PIN_PREEMPTION_TIMER,
    PIN_VIRTUAL_NMIS,
    SECONDARY_EPT,
    SECONDARY_PML,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
    SECONDARY_WBINVD_EXITING,
    WINDOW_CONTROLS,
)
from nvmx_core.arch.events import (
    NMI,
    OTHER_EVENT,
    PF,
    TYPE_MASK,
    TYPE_SHIFT,
    VALID,
    is_vectoring,
)
from nvmx_core.arch.exits import INVALID_STATE, MSR_LOAD_FAIL, TPR_BELOW_THRESHOLD
from nvmx_core.arch.fields import (
    CPU_BASED,
    ENTRY_CONTROLS,
    ENTRY_INSTRUCTION_LEN,
    ENTRY_INTR_INFO,
    ENTRY_MSR_LOAD_BAD,
    EOI_EXIT_BITMAP,
    EXCEPTION_BITMAP,
    GUEST_ACTIVITY,
    GUEST_INTERRUPTIBILITY,
    GUEST_PENDING_DBG,
    GUEST_PREEMPTION_TIMER,
    GUEST_STATE_FIELDS,
    LAUNCH_STATE,
    PF_ERROR_MASK,
    PF_ERROR_MATCH,
    PIN_BASED,
    SECONDARY,
    TPR_THRESHOLD,
)
from nvmx_core.arch.state import (
    ACTIVE,
    BLOCKING_BY_NMI,
    HLT,
    PENDING_DBG_VALID,
    SHUTDOWN,
)
from nvmx_core.arch.virtual_apic import tpr_is_below_threshold
from nvmx_core.cpu.entry_checks import PASSED, Verdict
from nvmx_core.journal import SMM_RETURN
from nvmx_core.l0 import reach
from nvmx_core.l0.injection import Injection
from nvmx_core.l0.log import NESTED_ENTRY, SLEEP
from nvmx_core.l0.vcpu import TIMER_OFF

L0_PIN_CONTROLS: Final = (
    PIN_EXT_INTR_EXITING | PIN_NMI_EXITING | PIN_VIRTUAL_NMIS | PIN_PREEMPTION_TIMER
)
L0_CPU_CONTROLS: Final = (
    CPU_HLT_EXITING
    | CPU_UNCOND_IO_EXITING
    | CPU_RDPMC_EXITING
    | CPU_MONITOR_EXITING
    | CPU_SECONDARY_CONTROLS
)
_L1_PIN_CONTROLS: Final = ~(PIN_PREEMPTION_TIMER | PIN_POSTED_INTR)
"""What L0 takes over from L1; the timer it keeps itself, posted interrupts it processes itself."""
_NO_WINDOWS: Final = ~WINDOW_CONTROLS
_PF_BIT: Final = 1 << PF

ENTRY_INJECTION_FIELDS: Final = slice(ENTRY_INTR_INFO, ENTRY_INSTRUCTION_LEN + 1)


class NestedEntry(Injection):
    """The layer that enters L2 on behalf of L1."""

    __slots__ = ()

    def nested_vmx_run(self) -> int:
        """L1's entry after the permission checks; returns the VM-instruction error, 0 when accepted."""
        vmcs12 = self.vmcs12 = self.l1.vmcs
        error = self.check_controls()
        if error:
            self.reach[reach.VMFAIL] += 1
            return error
        self.nested_run_pending = True
        self.entry_ticks = 0
        self.cpu.platform.at_entry()
        qualification, rule = self.check_guest_state()
        if rule != PASSED:
            self.fail_entry(INVALID_STATE, qualification)
            return 0
        bad_entry = vmcs12[ENTRY_MSR_LOAD_BAD]
        if bad_entry:
            self.fail_entry(MSR_LOAD_FAIL, bad_entry)
            return 0
        self.enter_guest_mode()
        return 0

    def refuses_entry_behind_mov_ss(self) -> bool:
        """E0, class 2: an entry in L1's MOV-SS shadow fails with error 26."""
        return True

    def check_controls(self) -> int:
        """The VM-instruction error of L1's controls and host state, 0 when all checks pass."""
        error, _rule = self.config.checker.judge_controls(self.vmcs12, self.memory.vtpr)
        return error

    def check_guest_state(self) -> Verdict:
        """The exit qualification and the rule that vmcs12's guest state breaks, PASSED for none."""
        return self.config.checker.judge_guest_state(self.vmcs12)

    def enter_guest_mode(self) -> None:
        """The accepted entry: vmcs02 is built, L2 is current, its timer runs."""
        vmcs12 = self.vmcs12
        self.log.append(
            (NESTED_ENTRY, len(self.journal), vmcs12[ENTRY_INTR_INFO], vmcs12[GUEST_ACTIVITY])
        )
        vmcs12[LAUNCH_STATE] = 1
        self.prepare_vmcs02(True)
        self.guest_mode = True
        self.start_timer()
        self.request_event_at_entry()
        if self.starts_asleep():
            self.start_asleep()
        else:
            self.mp_state = ACTIVE

    def request_event_at_entry(self) -> None:
        """What was pending before the entry is looked at again, now that L2 is current (O11, A2)."""
        self.request_event = True

    def start_timer(self) -> None:
        """O7: L1's VMX-preemption timer starts; value 0, or what the entry took, has expired already."""
        self.timer_expired = False
        self.timer = TIMER_OFF
        if self.vmcs12[PIN_BASED] & PIN_PREEMPTION_TIMER:
            self.timer = max(0, self.vmcs12[GUEST_PREEMPTION_TIMER] - self.entry_ticks)
            if self.timer == 0:
                self.timer_expired = True

    # -- vmcs02 ---------------------------------------------------------------------------------------

    def prepare_vmcs02(self, from_vmentry: bool) -> None:
        """Merge what L1 wants for L2 with what L0 needs for itself."""
        vmcs12 = self.vmcs12
        vmcs02 = self.vmcs02
        vmcs02[GUEST_STATE_FIELDS] = vmcs12[GUEST_STATE_FIELDS]
        vmcs02[GUEST_ACTIVITY] = ACTIVE
        if not vmcs02[GUEST_PENDING_DBG] & PENDING_DBG_VALID:
            vmcs02[GUEST_PENDING_DBG] = 0
        vmcs02[PIN_BASED] = L0_PIN_CONTROLS | vmcs12[PIN_BASED] & _L1_PIN_CONTROLS
        controls = L0_CPU_CONTROLS | vmcs12[CPU_BASED]
        vmcs02[CPU_BASED] = controls
        self.processor_controls02 = controls & _NO_WINDOWS
        secondary = vmcs12[SECONDARY] & ~SECONDARY_PML | SECONDARY_WBINVD_EXITING
        vmcs02[SECONDARY] = secondary | SECONDARY_EPT if self.config.l0_ept else secondary
        vmcs02[ENTRY_CONTROLS] = vmcs12[ENTRY_CONTROLS]
        vmcs02[TPR_THRESHOLD] = vmcs12[TPR_THRESHOLD]
        vmcs02[EOI_EXIT_BITMAP] = vmcs12[EOI_EXIT_BITMAP]
        self.prepare_exception_controls()
        if from_vmentry:
            vmcs02[ENTRY_INJECTION_FIELDS] = vmcs12[ENTRY_INJECTION_FIELDS]
        else:
            vmcs02[ENTRY_INTR_INFO] = 0
        self.prepare_nmi_blocking()
        if self.memory.pml_full or not self.config.l0_ept:
            self.load_tables()

    def prepare_exception_controls(self) -> None:
        """The exception bitmaps are united; where L0 needs #PF itself, L1's filter cannot be used."""
        vmcs12 = self.vmcs12
        vmcs02 = self.vmcs02
        if self.l0_needs_page_faults():
            vmcs02[EXCEPTION_BITMAP] = (
                vmcs12[EXCEPTION_BITMAP] | self.config.l0_exception_bitmap | _PF_BIT
            )
            vmcs02[PF_ERROR_MASK] = 0
            vmcs02[PF_ERROR_MATCH] = 0
        else:
            vmcs02[EXCEPTION_BITMAP] = vmcs12[EXCEPTION_BITMAP] | self.config.l0_exception_bitmap
            vmcs02[PF_ERROR_MASK] = vmcs12[PF_ERROR_MASK]
            vmcs02[PF_ERROR_MATCH] = vmcs12[PF_ERROR_MATCH]

    def l0_needs_page_faults(self) -> bool:
        """Shadow paging lives on #PF; the configuration may make L0 want them with EPT too."""
        config = self.config
        return not config.l0_ept or config.l0_exception_bitmap & _PF_BIT != 0

    def prepare_nmi_blocking(self) -> None:
        """Bit 3 of vmcs02 is virtual-NMI blocking, whatever L1 chose (the table of NMI modes).

        Without virtual NMIs L1's bit 3 blocks physical NMIs: with NMI exiting L2's IRET must not end it,
        so L0 keeps it itself; and an injected NMI is legal under it, which vmcs02 would refuse (G8).
        """
        vmcs02 = self.vmcs02
        self.physical_nmi_blocked = False
        if self.l1_uses_virtual_nmis():
            return
        info = vmcs02[ENTRY_INTR_INFO]
        injects_nmi = info & VALID != 0 and info & TYPE_MASK == NMI << TYPE_SHIFT
        if self.l1_wants_nmis():
            blocked = vmcs02[GUEST_INTERRUPTIBILITY] & BLOCKING_BY_NMI != 0
            self.physical_nmi_blocked = blocked or injects_nmi
            vmcs02[GUEST_INTERRUPTIBILITY] &= ~BLOCKING_BY_NMI
        elif injects_nmi:
            vmcs02[GUEST_INTERRUPTIBILITY] &= ~BLOCKING_BY_NMI

    # -- L2 that starts asleep ------------------------------------------------------------------------

    def starts_asleep(self) -> bool:
        """O3, O12: an activity other than active, and nothing injected that wakes L2."""
        return self.vmcs12[GUEST_ACTIVITY] != ACTIVE and not is_vectoring(
            self.vmcs02[ENTRY_INTR_INFO]
        )

    def start_asleep(self) -> None:
        """L2 sleeps from the start, in L0's hands: the processor never sees it."""
        vmcs02 = self.vmcs02
        self.nested_run_pending = False
        self.mp_state = self.vmcs12[GUEST_ACTIVITY]
        self.reach[reach.SLEEP] += 1
        self.log.append((SLEEP, len(self.journal), self.mp_state))
        info = vmcs02[ENTRY_INTR_INFO]
        if info & VALID and info & TYPE_MASK == OTHER_EVENT << TYPE_SHIFT:
            self.mtf_pending = True
        self.vmcs12[ENTRY_INTR_INFO] &= ~VALID
        vmcs02[ENTRY_INTR_INFO] &= ~VALID
        if self.mp_state >= SHUTDOWN and not info & VALID:
            vmcs02[GUEST_PENDING_DBG] = 0
        if self._tpr_is_below_threshold():
            self.nested_vmexit(TPR_BELOW_THRESHOLD)
        elif vmcs02[GUEST_PENDING_DBG]:
            self.take_debug_traps()

    def _tpr_is_below_threshold(self) -> bool:
        """O8, for an L2 that the processor does not enter."""
        vmcs12 = self.vmcs12
        return (
            self.mp_state == HLT
            and vmcs12[CPU_BASED] & CPU_TPR_SHADOW != 0
            and not vmcs12[SECONDARY] & SECONDARY_VIRTUAL_INTR_DELIVERY
            and tpr_is_below_threshold(self.memory.vtpr, vmcs12[TPR_THRESHOLD])
        )

    # -- RSM ------------------------------------------------------------------------------------------

    def leave_smm(self) -> None:
        """RSM: back to L1, or into L2 as an accepted entry without an event."""
        self.in_smm = False
        self.request_event = True
        self.journal.append((SMM_RETURN,))
        if not self.smm_guest_mode:
            return
        self.smm_guest_mode = False
        self.reach[reach.RSM_TO_L2] += 1
        self.prepare_vmcs02(False)
        self.guest_mode = True
        if self.mp_state == ACTIVE:
            self.set_run_pending_after_rsm()
        elif self.vmcs02[GUEST_PENDING_DBG]:
            self.take_debug_traps()

    def set_run_pending_after_rsm(self) -> None:
        """RSM completes into L2 before anything else is looked at."""
        self.nested_run_pending = True
