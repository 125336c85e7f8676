"""What Bochs 3.0 does otherwise than the manual says, alone or as the processor below KVM."""

from typing import Final

from nvmx_fuzz.boot.predicates import (
    breakpoint_without_condition,
    closed_interrupt_does_not_exit,
    shadow_lost_by_an_injected_mtf,
    single_step_of_an_exit,
    spurious_interrupt,
    timer_of_an_earlier_entry,
    trap_behind_injection,
    wrong_vector_in_delivery,
)
from nvmx_fuzz.boot.predicates_of_idle import (
    active_after_hlt,
)
from nvmx_fuzz.boot.rows import BOCHS, BOCHS_WRONG, BOTH_ALLOWED, EVERYWHERE, KVM_WRONG, Listed

OF_BOCHS: Final[tuple[Listed, ...]] = (
    Listed(
        "single step saved by an exit", BOCHS, ("Y6",), BOCHS_WRONG,
        "A trap that MOV SS holds is saved with an exit other than #DB (SDM: Saving Non-Register State); "
        "Bochs drops it.",
        "corpus/lessons/trap-mark-ends-at-exit.scn", single_step_of_an_exit,
    ),
    Listed(
        "closed interrupt does not exit", ("bochs-boot",), ("O11", "B3"), BOCHS_WRONG,
        "With external-interrupt exiting IF does not block (SDM: External-Interrupt Exiting); a shadow "
        "may.",
        "corpus/nested_events/interrupt-pending-at-entry-without-injection.scn",
        closed_interrupt_does_not_exit,
    ),
    Listed(
        "active after HLT", ("bochs-boot",), ("Y4",), BOCHS_WRONG,
        "The activity state is saved as it was before the exit (SDM: Saving Non-Register State). Bochs "
        "saves active. (KVM, below which Bochs never enters HLT, does so in three cases.)",
        "corpus/nested_events/nmi-window-wakes-halted-l2.scn", active_after_hlt,
    ),
    Listed(
        "shadow lost by an injected MTF exit", BOCHS, ("Y6", "B3"), BOCHS_WRONG,
        "An MTF exit that L1 injects comes before the first instruction, and saves the shadow of STI or "
        "MOV SS that L1 has set (SDM: Injection of Pending MTF VM Exits; Saving Non-Register State). Bochs "
        "saves none, behind VMLAUNCH at least.",
        "config l1-ept=off / L1 vmwrite GUEST_INTERRUPTIBILITY 0x1 / L1 inject other-event / L1 enter",
        shadow_lost_by_an_injected_mtf,
    ),
    Listed(
        "timer of an earlier entry", EVERYWHERE, ("O7",), f"{BOCHS_WRONG}; {KVM_WRONG}",
        "A VMX-preemption timer that has ended is saved as 0 (SDM: Saving Non-Register State). With a start "
        "value of 0 KVM starts no timer of its own, and saves what would be left of the one of an earlier "
        "entry (vmx_start_preemption_timer, vmx_get_preemption_timer_value). Bochs does the same.",
        "config preemption-timer=on save-preemption-timer=on / L1 enter / L2 cpuid / "
        "L1 vmwrite GUEST_PREEMPTION_TIMER 0x0 / L1 enter", timer_of_an_earlier_entry, "F9",
    ),
    Listed(
        "breakpoint without a condition", BOCHS, ("O6",), BOCHS_WRONG,
        "Bit 12 alone makes a #DB pending (SDM: Delivery of Pending Debug Exceptions after VM Entry); Bochs "
        "looks for conditions.",
        "L1 vmwrite GUEST_PENDING_DBG 0x1000 / L1 enter / L2 nop", breakpoint_without_condition,
    ),
    Listed(
        "interrupt of the class in service", ("bochs-boot",), ("K1",), BOCHS_WRONG,
        "An interrupt whose class is in service waits (SDM: Interrupt, Task, and Processor Priority). Bochs "
        "compares vectors, exits, and acknowledges the spurious one.",
        "config acknowledge-interrupt-on-exit=on / outside interrupt 0x51 / L1 enter / "
        "outside interrupt 0x52 / L1 enter no-eoi / L2 vmcall",
        spurious_interrupt,
    ),
    Listed(
        "trap behind a soft injection", EVERYWHERE, ("O6", "B2"), BOTH_ALLOWED,
        "For soft events behind MOV SS the manual leaves some of it to the processor; Bochs drops "
        "every trap (SDM: Delivery of Pending Debug Exceptions after VM Entry).",
        "corpus/nested_events/soft-injection-under-mov-ss-keeps-debug-exception.scn", trap_behind_injection,
    ),
    Listed(
        "virtual interrupt with another vector", ("kvm-bochs",), ("X4",), BOCHS_WRONG,
        "Bochs reports the event before it when the delivery of a virtual interrupt exits "
        "(docs/FIDELITY.md); L0 repairs the page and injects that.",
        "corpus/nested_events/virtual-interrupt-delivered-at-entry.scn", wrong_vector_in_delivery,
    ),
)  # fmt: skip
