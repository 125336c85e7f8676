"""Where Bochs and the model are known to disagree, who is right and why.

A *divergence* is recognised by a narrow predicate on the first difference; a campaign counts it and goes
on. A *mend* is a behaviour of Bochs that the helper replaces, because it would hide what comes after; where
the manual allows both, the helper makes Bochs choose as the model does. `docs/FIDELITY.md` is made from both
tables.
"""

from typing import Final, NamedTuple

from nvmx_core.arch.state import HLT, SHUTDOWN
from nvmx_fuzz.bochs.predicates import (
    Predicate,
    entry_to_smm,
    failed_entry_information,
    held_conditions_with_int1,
    monitor_disarmed,
    nmi_under_sti,
    old_conditions_in_dr6,
    order_of_guest_checks,
    posted_without_virtual_interrupts,
    shadow_before_old_task,
    unchecked,
    virtual_interrupt_not_reported,
    xsetbv_outside_cpl_0,
)
from nvmx_fuzz.compare import Difference

BOCHS_WRONG: Final = "Bochs is wrong"
MODEL_WRONG: Final = "the model is wrong"
BOTH_ALLOWED: Final = "both are allowed"
UNDECIDED: Final = "not decided"


# Configurations of the scenarios below.
_VIRTUAL: Final = "config tpr-shadow=on virtual-interrupt-delivery=on"
_POSTED: Final = (
    "config acknowledge-interrupt-on-exit=on tpr-shadow=on virtual-interrupt-delivery=on / "
    "config posted-interrupts=on"
)


class Divergence(NamedTuple):
    """One known disagreement, a scenario that shows it, and the predicate.

    ``below_l0``: whether it can show where Bochs is the processor of an L0. It cannot where that L0 has the
    processor do something else, or makes L1's view by itself: there it would hide what the L0 does wrong.
    """

    name: str
    rules: tuple[str, ...]
    verdict: str
    why: str
    scenario: str
    matches: Predicate
    below_l0: bool = True


class Mend(NamedTuple):
    """A behaviour of Bochs that the helper replaces, and a scenario on which both agree since then."""

    rules: tuple[str, ...]
    what: str
    why: str
    scenario: str
    verdict: str = BOCHS_WRONG


DIVERGENCES: Final[tuple[Divergence, ...]] = (
    Divergence(
        "a shadow before IRET to the old task", ("B9", "I1", "Y6"), BOCHS_WRONG,
        "Exit 9 is fault-like: the blocking by STI or MOV SS that covers IRET is saved with the trap that it "
        "holds (SDM: Saving Non-Register State); Bochs saves them for other instructions only.",
        "L1 vmwrite GUEST_RFLAGS 0x4002 / L1 enter / L2 sti / L2 iret",
        shadow_before_old_task,
    ),
    Divergence(
        "injection into HLT", ("G4",), BOCHS_WRONG,
        "HLT takes an interrupt, NMI, #DB, #MC and a pending MTF exit only (SDM: Checks on Guest "
        "Non-Register "
        "State); Bochs does not ask.",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / L1 inject hardware-exception 0xd / L1 enter",
        unchecked("G4", HLT), below_l0=False,
    ),
    Divergence(
        "vector 18 into shutdown", ("G4",), BOCHS_WRONG,
        "Shutdown takes NMIs and #MC only, which is vector 18 of type 3 (SDM: Checks on Guest Non-Register "
        "State); Bochs looks at the vector alone.",
        "L1 vmwrite GUEST_ACTIVITY 0x2 / L1 inject external-interrupt 0x12 / L1 enter",
        unchecked("G4", SHUTDOWN), below_l0=False,
    ),
    Divergence(
        "NMI under virtual-NMI blocking", ("G8",), BOCHS_WRONG,
        "With virtual NMIs an NMI is not injected while bit 3 is set (SDM: Checks on Guest Non-Register "
        "State).",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x8 / L1 inject nmi / L1 enter",
        unchecked("G8"),
    ),
    Divergence(
        "single step not pending", ("G9",), BOCHS_WRONG,
        "In an interrupt shadow or HLT, BS of the pending debug exceptions equals TF (SDM: Checks on Guest "
        "Non-Register State); Bochs does not ask.",
        "config single-step=on / L1 vmwrite GUEST_INTERRUPTIBILITY 0x2 / L1 enter",
        unchecked("G9"),
    ),
    Divergence(
        "qualification of NMI under STI", ("G7",), BOCHS_WRONG,
        "The failed entry has qualification 3 (SDM: VM-Entry Failures During or After Loading Guest State).",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 inject nmi / L1 enter",
        nmi_under_sti,
    ),
    Divergence(
        "entry to SMM", ("G12",), BOCHS_WRONG,
        "Outside SMM the control must be 0, a check on VM-entry control fields, VMfail 7 (SDM: Checks on "
        "VM-Entry Control Fields); Bochs fails in the guest state.",
        "L1 control entry-to-smm on / L1 enter",
        entry_to_smm, below_l0=False,
    ),
    Divergence(
        "failed entry rewrites exit information", ("E0",), BOCHS_WRONG,
        "Exits 33 and 34 write reason and qualification only (SDM: VM-Entry Failures During or After Loading "
        "Guest State); kvm c3634d25fbee.",
        "corpus/nested_events/failed-entry-leaves-exit-information.scn",
        failed_entry_information, below_l0=False,
    ),
    Divergence(
        "XSETBV outside CPL 0", ("P15",), BOCHS_WRONG,
        "Faults based on privilege come before VM exits (SDM: Relative Priority of Faults and VM Exits).",
        "config user-mode=on / L1 enter / L2 xsetbv",
        xsetbv_outside_cpl_0,
    ),
    Divergence(
        "virtual interrupt in IDT-vectoring", ("X4",), BOCHS_WRONG,
        "An exit in the delivery of a virtual interrupt reports it like an external interrupt (SDM: "
        "Virtual-Interrupt "
        "Delivery; Information for VM Exits During Event Delivery); Bochs reports the event before it.",
        "config tpr-shadow=on virtual-interrupt-delivery=on / L1 virtual-interrupt 0x40 / "
        "L1 ept stack absent / L1 enter",
        virtual_interrupt_not_reported,
    ),
    Divergence(
        "old conditions in DR6", ("Y1",), BOTH_ALLOWED,
        "A debug exception may clear bits 3:0 of DR6 (SDM: Debug Status Register); Bochs does, the "
        "model does not.",
        "L1 vmwrite GUEST_PENDING_DBG 0x1001 / L1 enter / outside interrupt 0x0 / "
        "L1 vmwrite GUEST_RFLAGS 0x102 / L1 enter / L2 nop",
        old_conditions_in_dr6,
    ),
    Divergence(
        "reserved bits of pending debug exceptions", ("G10",), BOCHS_WRONG,
        "All reserved bits must be 0 (SDM: Checks on Guest Non-Register State); Bochs looks at the low half.",
        "L1 vmwrite GUEST_PENDING_DBG 0x200004000 / L1 enter",
        unchecked("G10"),
    ),
    Divergence(
        "order of guest-state checks", ("E0",), BOTH_ALLOWED,
        "With several faults in the guest state any of them may be reported (SDM: Checking and Loading "
        "Guest State).",
        "L1 vmwrite VMCS_LINK_POINTER 0x0 / L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 inject "
        "external-interrupt 0x0 / "
        "L1 enter",
        order_of_guest_checks,
    ),
    Divergence(
        "posted interrupts without virtual ones", ("C4",), BOCHS_WRONG,
        "Process posted interrupts needs virtual-interrupt delivery, VMfail 7 (SDM: Checks on "
        "VM-Execution Control "
        "Fields); Bochs enters.",
        "config acknowledge-interrupt-on-exit=on / L1 control posted-interrupts on / L1 enter",
        posted_without_virtual_interrupts, below_l0=False,
    ),
    Divergence(
        "INT1 behind MOV SS reports held conditions", ("B2", "Y1"), UNDECIDED,
        "The manual does not say whether a #DB of INT1 takes up conditions that MOV SS holds "
        "(SDM: Basic VM-Exit Information); Bochs adds them.",
        "config exceptions=#DB / L1 vmwrite GUEST_INTERRUPTIBILITY 0x2 / "
        "L1 vmwrite GUEST_PENDING_DBG 0x1001 / L1 enter / L2 int1",
        held_conditions_with_int1,
    ),
    Divergence(
        "a TLB flush disarms the monitor", ("P14",), BOTH_ALLOWED,
        "A TLB invalidation between MONITOR and MWAIT is one of the events that can end the monitoring (SDM: "
        "MONITOR/MWAIT Instruction); in Bochs it does, in the model not.",
        "L1 control mwait-exiting on / L1 enter / L2 monitor / L2 mov-cr3 / L2 mwait",
        monitor_disarmed, below_l0=False,
    ),
)  # fmt: skip

MENDS: Final[tuple[Mend, ...]] = (
    Mend(
        ("X1",), "A full log of page modifications exits when a dirty flag of the EPT has to be set "
        "(SDM: Page-Modification Logging).",
        "It exits at every walk of the EPT.",
        "L1 control pml on / L1 pml-log full / L1 enter / L2 nop",
    ),
    Mend(
        ("O11",), "An interrupt pending at the entry exits although IF = 0.",
        "It computes what is masked before it is in VMX non-root operation.",
        "L1 vmwrite GUEST_RFLAGS 0x2 / outside interrupt 0x51 / L1 enter",
    ),
    Mend(
        ("A1",),
        "Windows, virtual interrupts, debug traps and interrupts that exit with IF = 0 end HLT.",
        "It looks at unmasked interrupts and a few other events only.",
        "L1 vmwrite GUEST_RFLAGS 0x2 / L1 enter / L2 hlt / outside interrupt 0x51",
    ),
    Mend(
        ("Y4",), "Exits out of HLT and shutdown save that state.", "It is active before it exits.",
        "L1 enter / L2 hlt / outside nmi",
    ),
    Mend(
        ("Y4",), "Exits out of wait-for-SIPI save that state, and leave NMIs as blocked as they were.",
        "It saves active, and blocks NMIs while it waits.",
        "L1 vmwrite GUEST_ACTIVITY 0x3 / L1 enter / outside sipi 0x0",
    ),
    Mend(
        ("E0",), "A failed entry leaves NMIs as blocked as they were.",
        "It enters wait-for-SIPI before it loads the MSRs.",
        "L1 vmwrite ENTRY_MSR_LOAD_BAD 0x2 / L1 vmwrite GUEST_ACTIVITY 0x3 / L1 enter",
    ),
    Mend(
        ("G1",), "Entering shutdown or wait-for-SIPI leaves IF alone.", "It clears IF.",
        "L1 vmwrite GUEST_ACTIVITY 0x2 / L1 enter / outside nmi",
    ),
    Mend(
        ("A2",), "INIT is latched while L1 runs.", "It drops INIT.",
        "outside init / L1 enter",
    ),
    Mend(
        ("X8",), "RF of an exit in a delivery is that of the frame.", "It saves 1.",
        "L1 ept idt-low absent / L1 inject hardware-exception 0x0 / L1 enter",
    ),
    Mend(
        ("Y2",), "The return address behind an NMI is the handler's.",
        "It keeps the old one until an instruction ends.",
        "config nmi-exiting=off virtual-nmis=off / L1 enter / outside nmi / outside interrupt 0x51",
    ),
    Mend(
        ("K3",), "RVI is not changed when no vector was posted.", "It makes RVI 0xff.",
        f"{_POSTED} / L1 enter / outside interrupt 0xf2 / L2 cpuid",
    ),
    Mend(
        ("K3",), "A posted interrupt that is not delivered leaves L2 asleep.", "It wakes L2.",
        f"{_POSTED} / L1 vmwrite GUEST_RFLAGS 0x2 / L1 enter / L2 hlt / outside post-interrupt 0x40",
    ),
    Mend(
        ("K4", "P11"), "A virtual interrupt that is held does not come in place of one that exits.",
        "It looks whether one is pending, not whether it is masked.",
        f"{_VIRTUAL} / L1 vmwrite GUEST_RFLAGS 0x2 / L1 virtual-interrupt 0x40 / L1 enter / "
        "outside interrupt 0x51",
    ),
    Mend(
        ("P12",), "A boundary is evaluated until nothing is left.",
        "It takes one event, then executes an instruction; this includes posted interrupts.",
        f"{_POSTED} / L1 enter / outside post-interrupt 0x40 / L2 nop",
    ),
    Mend(
        ("K1",), "An interrupt of the class in service waits.",
        "It compares vectors and then acknowledges the spurious one.",
        "config acknowledge-interrupt-on-exit=on / L1 enter / outside interrupt 0x51 / L1 enter no-eoi / "
        "outside interrupt 0x52",
    ),
    Mend(
        ("B3",), "A shadow does not hold an interrupt that exits.",
        "STI and MOV SS may or may not hold it (SDM: Event Blocking); Bochs has them hold it, the model not.",
        "L1 enter / L2 mov-ss / outside interrupt 0x51", BOTH_ALLOWED,
    ),
    Mend(
        ("B4",), "A shadow does not hold an NMI that exits.", "The same for NMIs (SDM: Event Blocking).",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x2 / outside nmi at-entry / L1 enter", BOTH_ALLOWED,
    ),
    Mend(
        ("B7",), "STI and MOV SS do not hold back the VMX-preemption timer (SDM: VMX-Preemption Timer).",
        "It does not look at the timer in their shadow.",
        "corpus/nested_events/timer-exits-under-sti-shadow.scn",
    ),
    Mend(
        ("Y6",), "INIT, MTF and exits under MOV SS save an enabled breakpoint without a condition too "
        "(SDM: Saving Non-Register State).",
        "It saves bit 12 only with a condition.",
        "corpus/lessons/init-keeps-breakpoint.scn",
    ),
    Mend(
        ("O6",),
        "Bit 12 alone makes a #DB pending (SDM: Delivery of Pending Debug Exceptions after VM Entry).",
        "It looks for conditions.",
        "L1 vmwrite GUEST_PENDING_DBG 0x1000 / L1 enter / L2 nop",
    ),
    Mend(
        ("O6",), "Conditions come with a single step too.",
        "Without bit 12 it drops them.",
        "L1 vmwrite GUEST_PENDING_DBG 0x4004 / L1 enter / L2 nop",
    ),
    Mend(
        ("B8",),
        "Behind RSM shadow, HLT, debug traps, blocking of NMIs and pending exits are as before the SMI "
        "(SDM: Default Treatment of SMI Delivery; Default Treatment of RSM).",
        "It forgets them, or exits out of SMM.",
        "L1 enter / L2 mov-ss / outside smi / outside init / outside rsm",
    ),
    Mend(
        ("O6",), "An entry into shutdown or wait-for-SIPI without an event drops pending debug exceptions "
        "(SDM: Delivery of Pending Debug Exceptions after VM Entry).",
        "It keeps them.",
        "config nmi-exiting=off virtual-nmis=off / L1 vmwrite GUEST_ACTIVITY 0x2 / "
        "L1 vmwrite GUEST_PENDING_DBG 0x1001 / L1 enter / outside nmi",
    ),
    Mend(
        ("O6", "B2"), "INT n, INT3 and INTO behind MOV SS keep the trap, which comes before the handler runs "
        "(SDM: Masking Exceptions and Interrupts When Switching Stacks).",
        "It drops the trap.",
        "config single-step=on / L1 enter / L2 pop-ss / L2 int 0x80",
    ),
    Mend(
        ("O6", "B2"), "An injected soft event behind MOV SS keeps the trap too.",
        "For software exceptions other than #BP and #OF the manual leaves it to the processor; Bochs drops "
        "every trap.",
        "L1 vmwrite GUEST_INTERRUPTIBILITY 0x2 / L1 vmwrite GUEST_PENDING_DBG 0x1001 / "
        "L1 vmwrite ENTRY_INSTRUCTION_LEN 0x2 / L1 inject software-interrupt 0x80 / L1 enter",
        BOTH_ALLOWED,
    ),
    Mend(
        ("O4", "O6"),
        "An injected MTF exit is no delivery: shadow, activity and pending debug exceptions stay "
        "(SDM: Event Injection; Injection of Pending MTF VM Exits).",
        "It takes every injection for one.",
        "L1 vmwrite GUEST_ACTIVITY 0x1 / L1 inject other-event / L1 enter",
    ),
    Mend(
        ("O9", "M5"), "An injected MTF exit comes before the first instruction whatever the control says "
        "(SDM: Injection of Pending MTF VM Exits).",
        "With the control it opens the exit behind that instruction.",
        "L1 control monitor-trap-flag on / L1 inject other-event / L1 enter",
    ),
    Mend(
        ("O8", "P2", "K4"), "The TPR threshold and virtual interrupts are looked at whatever became of the "
        "injection (SDM: VM Exits Induced by the TPR Threshold).",
        "A fault of the injection ends VMLAUNCH before it looks.",
        "config tpr-shadow=on / L1 control virtualize-apic-accesses on / L1 vmwrite TPR_THRESHOLD 0x4 / "
        "L1 inject external-interrupt 0xd / L2 gate 0xd not-present / L1 enter",
    ),
    Mend(
        ("O8",), "The TPR threshold waits for the wake-up from shutdown, and does not exit out of "
        "wait-for-SIPI (SDM: VM Exits Induced by the TPR Threshold).",
        "It exits at the entry.",
        "corpus/nested_events/tpr-exit-waits-for-the-wake-up-from-shutdown.scn",
    ),
)  # fmt: skip


def known(found: Difference, *, below_l0: bool = False) -> Divergence | None:
    """The divergence that a difference is an instance of, or None; *below_l0*: an L0 runs on that Bochs."""
    able = (entry for entry in DIVERGENCES if entry.below_l0 or not below_l0)
    return next((entry for entry in able if entry.matches(found)), None)
