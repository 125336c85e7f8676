"""Situations in a trace: those that break a rule, and those that only look like it. One to a row."""

from collections.abc import Callable
from typing import NamedTuple

from tests.trace.writer import FORMS, OTHER_PID, Trace

EVENT = 0x80000040
IN_DELIVERY = {"vectoring": EVENT, "qualification": 0x182}

ALL = frozenset(FORMS)
FROM_5_10 = frozenset(name for name, form in FORMS.items() if form.kernel >= (5, 10))
FROM_6 = frozenset(name for name, form in FORMS.items() if form.kernel >= (6, 0))
KERNELS_OWN = ALL - {"4.8-plugin"}
FROM_6_13 = frozenset(name for name, form in FORMS.items() if form.kernel >= (6, 13))


def stay(event: int = 0) -> Trace:
    """L2 runs, and everything that a trace can show was seen once before."""
    trace = Trace()
    trace.entry().exit("HLT").interrupt(0x30).entry()
    trace.nested_entry().entry().l2_exit("EXCEPTION_NMI", 0x80000B0D, 0x80000B0E)
    trace.exception("GP", 0, again=True).entry(event=0x80000B0D).l2_exit("CPUID")
    trace.reflected("CPUID").interrupt(0x31).entry(event=0x80000031)
    return trace.nested_entry(event).entry(event=event)


def interrupted(event: int = EVENT) -> Trace:
    """L0 repairs a page under the delivery of an event."""
    return stay(event).l2_exit("EPT_VIOLATION", vectoring=event, qualification=0x182)


def entered(event: int) -> Callable[[], Trace]:
    """L1 injects what no processor takes, and L2 runs."""
    return lambda: stay(event).l2_exit("CPUID").reflected("CPUID")


class Case(NamedTuple):
    rule: str
    name: str
    trace: Callable[[], Trace]
    seen_in: frozenset[str] = ALL
    otherwise: tuple[str, ...] = ()


FIRING = [
    Case("X3", "the original bug", lambda: interrupted().interrupt(0x40, again=True).entry(event=EVENT, immediate=True)
         .l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT", EVENT, 0x80000051)),
    Case("X3", "NMI exit", lambda: stay().l2_exit("EXCEPTION_NMI", interruption=0x80000202)
         .reflected("EXCEPTION_NMI", EVENT, 0x80000202)),
    Case("X3", "timer", lambda: stay().l2_exit("PREEMPTION_TIMER").reflected("PREEMPTION_TIMER", EVENT)),
    Case("X3", "the processor's own exit", lambda: stay().exit("EXTERNAL_INTERRUPT", vectoring=EVENT), FROM_5_10),
    Case("X3", "the processor's exit of L2", lambda: stay().l2_exit("MONITOR_TRAP_FLAG", vectoring=EVENT)),
    Case("X2", "triple fault", lambda: stay().l2_exit("TRIPLE_FAULT").reflected("TRIPLE_FAULT", EVENT)),
    Case("X2", "double fault", lambda: interrupted(0x80000B0E).reflected("EXCEPTION_NMI", 0x80000B0E, 0x80000B08)),
    Case("X1", "instruction", lambda: stay().l2_exit("CPUID").reflected("CPUID", EVENT)),
    Case("X1", "delivery not told", lambda: interrupted().reflected("EPT_VIOLATION")),
    Case("X1", "no delivery told", lambda: stay().l2_exit("EPT_VIOLATION").reflected("EPT_VIOLATION", EVENT)),
    Case("X4", "another event told", lambda: interrupted().reflected("EPT_VIOLATION", 0x80000041)),
    Case("X4", "type changed", lambda: interrupted(0x80000303).reflected("EPT_VIOLATION", 0x80000603)),
    Case("X4", "reserved type", lambda: stay().l2_exit("EPT_VIOLATION", vectoring=0x80000100)),
    Case("X4", "reserved bits", lambda: stay().l2_exit("EPT_VIOLATION", vectoring=EVENT | 1 << 20)
         .reflected("EPT_VIOLATION", EVENT)),
    Case("X4", "error code of an interrupt", lambda: stay().l2_exit("EPT_VIOLATION", vectoring=EVENT | 1 << 11)),
    Case("X4", "another interrupt again", lambda: interrupted().interrupt(0x41, again=True).entry(event=EVENT), FROM_6,
         otherwise=("X13",)),
    Case("X4", "interrupt again as soft", lambda: interrupted().interrupt(0x40, soft=True, again=True)
         .entry(event=EVENT), FROM_6),
    Case("X4", "another exception again", lambda: interrupted(0x80000B0E).exception("GP", 0, again=True)
         .entry(event=0x80000B0E), FROM_6),
    Case("X4", "the entry says another", lambda: interrupted(0x80000202).entry(event=EVENT), FROM_6_13),
    Case("X6", "instruction with a cause", lambda: stay().exit("CPUID", interruption=0x80000B0E), KERNELS_OWN),
    Case("X6", "shown to L1", lambda: stay().l2_exit("HLT").reflected("HLT", 0, 0x80000051)),
    Case("X6", "exception without a cause", lambda: stay().l2_exit("CPUID").reflected("EXCEPTION_NMI")),
    Case("X6", "interrupt as exception", lambda: stay().l2_exit("CPUID").reflected("EXCEPTION_NMI", 0, 0x80000040)),
    Case("X6", "error code of #UD", lambda: stay().l2_exit("EXCEPTION_NMI", interruption=0x80000306)
         .reflected("EXCEPTION_NMI", 0, 0x80000B06)),
    Case("K1", "no vector", lambda: stay().exit("EXTERNAL_INTERRUPT", interruption=0x51), KERNELS_OWN),
    Case("K1", "no interrupt", lambda: stay().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000351)),
    Case("X13", "gone", lambda: interrupted().entry().l2_exit("HLT").reflected("HLT")),
    Case("X13", "exception gone", lambda: interrupted(0x80000B0E).entry(), FROM_6),
    Case("X13", "NMI gone", lambda: interrupted(0x80000202).entry(), FROM_6_13),
    Case("X13", "another interrupt first", lambda: interrupted().interrupt(0x41).entry(event=0x80000041)),
    Case("X13", "dropped for an interrupt", lambda: interrupted().reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("X13", "into L1's injection", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .interrupt(0x41).entry(event=EVENT), FROM_6),
    Case("D6", "injected twice", lambda: interrupted().interrupt(0x40, again=True).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION", qualification=0x184).interrupt(0x40, again=True).entry(event=EVENT), FROM_6),
    Case("D6", "exception twice", lambda: interrupted(0x80000B0E).exception("PF", 2, again=True)
         .entry(event=0x80000B0E).l2_exit("CPUID").exception("PF", 2, again=True).entry(event=0x80000B0E), FROM_6),
    Case("O2", "exit before the entry", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .reflected("TRIPLE_FAULT").entry(), FROM_6),
    Case("O2", "entered with another", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .entry(event=0x80000041), FROM_6_13),
    *(
        Case(rule, f"entry {event:#x}", entered(event), FROM_6)
        for rule, event in (
            ("E1", 0x80000100), ("E2", 0x80000203), ("E3", 0x80000320), ("E4", 0x80000705), ("E5", 0x80000840),
            ("E6", 0x80001040), ("E6", 0x80100040),
        )
    ),
    Case("O11", "late behind an injection", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .arrival(0x51).entry(event=EVENT).l2_exit("EPT_VIOLATION", qualification=0x184).entry()
         .l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT", 0, 0x80000051), FROM_6),
    Case("O11", "pending before L1's entry", lambda: stay().l2_exit("HLT").reflected("HLT").arrival(0x51).entry()
         .nested_entry(EVENT).entry(event=EVENT).l2_exit("EPT_VIOLATION", qualification=0x184).entry()
         .l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT", 0, 0x80000051), FROM_6),
    Case("P12", "late after a reinjection", lambda: interrupted().arrival(0x51).interrupt(0x40, again=True)
         .entry(event=EVENT).l2_exit("EPT_VIOLATION", qualification=0x184).entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("P12", "two instructions from another thread", lambda: interrupted().on(OTHER_PID, 1).entry()
         .arrival(0x51).on().interrupt(0x40, again=True).entry(event=EVENT).l2_exit("EPT_VIOLATION").entry()
         .l2_exit("EPT_VIOLATION").entry().l2_exit("EPT_VIOLATION").entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
]  # fmt: skip

SILENT = [
    Case("", "the mended order", lambda: interrupted().arrival(0x51).interrupt(0x40, again=True)
         .entry(event=EVENT, immediate=True).l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "repaired four times", lambda: interrupted().interrupt(0x40, again=True).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION", **IN_DELIVERY).interrupt(0x40, again=True).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION", qualification=0x184).entry().l2_exit("HLT").reflected("HLT")),
    Case("", "told to L1 and injected by L1", lambda: interrupted().reflected("EPT_VIOLATION", EVENT).entry()
         .nested_entry(EVENT).entry(event=EVENT).l2_exit("CPUID").reflected("CPUID")),
    Case("", "cancelled entry", lambda: interrupted().interrupt(0x40, again=True).interrupt(0x40, again=True)
         .entry(event=EVENT).l2_exit("CPUID").reflected("CPUID")),
    Case("", "cancelled first entry", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .interrupt(0x40, again=True).entry(event=EVENT).l2_exit("HLT").reflected("HLT")),
    Case("", "interrupt of L2, cancelled once", lambda: stay().l2_exit("EPT_VIOLATION").interrupt(0x60)
         .interrupt(0x60, again=True).entry(event=0x80000060).l2_exit("HLT").reflected("HLT")),
    Case("", "replaced by a fault", lambda: interrupted().exception("PF", 2).entry(event=0x80000B0E)
         .l2_exit("CPUID").reflected("CPUID")),
    Case("", "replaced by a fault that waits for INIT", lambda: stay(EVENT).l2_exit("EXCEPTION_NMI", EVENT, 0x80000B0E)
         .entry(immediate=True).l2_exit("PREEMPTION_TIMER").reflected("INIT_SIGNAL")),
    Case("", "replaced by a fault whose injection was not recorded", lambda: stay(EVENT)
         .l2_exit("EXCEPTION_NMI", EVENT, 0x80000B0E).entry(event=0x80000B0E).l2_exit("CPUID").reflected("CPUID")),
    Case("", "replaced, then cancelled", lambda: interrupted().exception("PF", 2).exception("PF", 2, again=True)
         .entry(event=0x80000B0E).l2_exit("CPUID").reflected("CPUID")),
    Case("", "double fault merged", lambda: interrupted(0x80000B0E).exception("DF", 0).entry(event=0x80000B08)),
    Case("", "intercepted nested fault", lambda: interrupted().reflected("EXCEPTION_NMI", EVENT, 0x80000B0E)),
    Case("", "double fault intercepted", lambda: interrupted(0x80000B0E).reflected("EXCEPTION_NMI", 0, 0x80000B08)),
    Case("", "fault in the double fault", lambda: interrupted(0x80000B08)
         .reflected("EXCEPTION_NMI", 0x80000B08, 0x80000B0E)),
    Case("", "triple fault", lambda: interrupted(0x80000B08).reflected("TRIPLE_FAULT")),
    Case("", "bit 12 is undefined", lambda: stay().l2_exit("EPT_VIOLATION", vectoring=EVENT | 1 << 12)
         .reflected("EPT_VIOLATION", EVENT)),
    Case("", "NMI re-injected, which no event shows", lambda: interrupted(0x80000202).entry(event=0x80000202)),
    Case("", "INT1 re-injected, which no event shows", lambda: interrupted(0x80000501).entry(event=0x80000501)),
    Case("", "soft interrupt", lambda: interrupted(0x80000440).interrupt(0x40, soft=True, again=True)
         .entry(event=0x80000440)),
    Case("", "#BP again", lambda: interrupted(0x80000603).exception("BP", again=True).entry(event=0x80000603)),
    Case("", "task gate", lambda: stay(EVENT).l2_exit("TASK_SWITCH", vectoring=EVENT, qualification=3 << 30).entry()),
    Case("", "userspace in between", lambda: interrupted().other("kvm_userspace_exit: reason KVM_EXIT_INTR (10)")
         .entry()),
    Case("", "SMM in between", lambda: interrupted().other("kvm_enter_smm: vcpu 0: entering SMM, smbase 0x30000")
         .entry().exit("HLT").entry()),
    Case("", "SMM unseen", lambda: stay().l2_exit("EPT_VIOLATION").entry().exit("EPT_VIOLATION").entry()
         .exit("IO_INSTRUCTION").interrupt(0x33, again=True).entry(event=0x80000033)),
    Case("", "timer trick has no nested event", lambda: interrupted().interrupt(0x40, again=True)
         .entry(event=EVENT, immediate=True).exit("PREEMPTION_TIMER")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "failed entry keeps old words", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .reflected("INVALID_STATE FAILED_VMENTRY", EVENT, 0x80000B0E).entry()),
    Case("", "failed entry by number", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .reflected("0x80000021", EVENT).entry()),
    Case("", "L1's MSRs could not be loaded", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(EVENT)
         .interrupt(0x30).entry(rip=0x2000, event=0x80000030).exit("VMREAD").entry(rip=0x2004)),
    Case("", "RSM goes on in L2", lambda: stay(EVENT).l2_exit("EPT_VIOLATION")
         .other("kvm_enter_smm: vcpu 0: entering SMM, smbase 0x30000").entry().exit("EXCEPTION_NMI", 0, 0x80000306)
         .add("nested_entry", event=EVENT).interrupt(0x60).entry(event=0x80000060).l2_exit("CPUID")
         .reflected("CPUID")),
    Case("", "refused entry", lambda: stay().l2_exit("HLT").reflected("HLT").nested_entry(0x80000100)
         .other("kvm_nested_vmenter_failed: invalid guest state").entry(event=0).exit("VMREAD").entry()),
    Case("", "an unknown reason", lambda: stay().l2_exit("0x63", vectoring=EVENT, interruption=0x80000B0E)),
    Case("", "a bus lock may be either", lambda: stay().l2_exit("BUS_LOCK", vectoring=EVENT)),
    Case("", "not acknowledged", lambda: stay().l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT", 0, 0)),
    Case("", "error code where a processor lets one", lambda: stay(0x80000B06).l2_exit("CPUID").reflected("CPUID")),
    Case("", "FRED's bit", lambda: stay(0x80002B0E).l2_exit("CPUID").reflected("CPUID")),
    Case("", "one instruction may be a shadow", lambda: stay().l2_exit("EPT_VIOLATION").arrival(0x51).entry()
         .l2_exit("EPT_VIOLATION").entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "came from another processor meanwhile", lambda: interrupted().on(OTHER_PID, 1).entry()
         .arrival(0x51).on().interrupt(0x40, again=True).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION", qualification=0x184).entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "EOI in between", lambda: interrupted().arrival(0x51).interrupt(0x40, again=True).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION").other("kvm_eoi: apicid 0 vector 96").entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "an MSR written for L2", lambda: interrupted().arrival(0x51).interrupt(0x40, again=True)
         .entry(event=EVENT).l2_exit("EPT_VIOLATION").entry().l2_exit("MSR_WRITE").entry()
         .l2_exit("EXTERNAL_INTERRUPT").reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "L1 took it, and it came again", lambda: stay().l2_exit("HLT").reflected("HLT").arrival(0x51).entry()
         .exit("HLT").interrupt(0x51).entry(event=0x80000051).nested_entry(EVENT).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION", qualification=0x184).entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "posted to L1, which may have taken it", lambda: stay().l2_exit("HLT").reflected("HLT")
         .arrival(0x51, posted=True).entry().nested_entry(EVENT).entry(event=EVENT)
         .l2_exit("EPT_VIOLATION", qualification=0x184).entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "an asynchronous EPT violation", lambda: interrupted().arrival(0x51).interrupt(0x40, again=True)
         .entry(event=EVENT).l2_exit("EPT_VIOLATION", qualification=0x10182).entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
    Case("", "another guest's vCPU of that number", lambda: interrupted().on(OTHER_PID, 0).entry().on(77, 1)
         .arrival(0x51, apic=0).on().interrupt(0x40, again=True).entry(event=EVENT).l2_exit("EPT_VIOLATION").entry()
         .l2_exit("EPT_VIOLATION").entry().l2_exit("EPT_VIOLATION").entry().l2_exit("EXTERNAL_INTERRUPT")
         .reflected("EXTERNAL_INTERRUPT", 0, 0x80000051)),
]  # fmt: skip
