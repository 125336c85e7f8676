"""What the events of a trace say, a small record for each kind; UNKNOWN is what a spelling leaves out."""

from typing import NamedTuple

from nvmx_fuzz.trace.words import Fault


class Entry(NamedTuple):
    """`kvm_entry`: L0 enters its guest, L1 or L2.

    *event* is the injection, *immediate* that L0 wants to be back before the first instruction.
    """

    vcpu: int
    rip: int
    event: int
    immediate: bool


class Exit(NamedTuple):
    """`kvm_exit`: the processor left L0's guest. *faults* are what the words alone show."""

    vcpu: int
    reason: int
    failed: bool
    rip: int
    qualification: int
    vectoring: int
    interruption: int
    faults: tuple[Fault, ...]


class NestedExit(NamedTuple):
    """`kvm_nested_vmexit`: that exit was L2's; the fields are those of `Exit`."""

    vcpu: int
    reason: int
    failed: bool
    rip: int
    qualification: int
    vectoring: int
    interruption: int
    faults: tuple[Fault, ...]


class Reflected(NamedTuple):
    """`kvm_nested_vmexit_inject`: L0 shows L1 an exit of L2, with these fields."""

    reason: int
    failed: bool
    qualification: int
    vectoring: int
    interruption: int
    faults: tuple[Fault, ...]


class NestedEntry(NamedTuple):
    """`kvm_nested_vmenter`, or `kvm_nested_vmrun` before 6.1: L1 enters L2 and injects *event*.

    Only AMD's half of KVM has the older one, and its numbers are AMD's: *is_vmx* is then false.
    """

    is_vmx: bool
    vmcs: int
    l2_rip: int
    event: int
    has_ept: bool


class EntryRefused(NamedTuple):
    """`kvm_nested_vmenter_failed`: a check of L1's entry failed."""


class InterruptInjected(NamedTuple):
    """`kvm_inj_virq`: L0 puts an interrupt into the next entry. *type*, *reinjected*: UNKNOWN before 5.19."""

    vector: int
    type: int
    reinjected: int


class ExceptionInjected(NamedTuple):
    """`kvm_inj_exception`, likewise; *knows_reinjection*: the kernel also traces those injected again.

    A kernel that prints no error code for an exception without one is 5.19 or newer. Earlier ones trace first
    injections alone, and mark none.
    """

    vector: int
    reinjected: bool


class Arrival(NamedTuple):
    """`kvm_apic_accept_irq`, `kvm_apicv_accept_irq`: an interrupt comes to the APIC of vCPU *apic*."""

    apic: int
    vector: int
    is_interrupt: bool
    is_posted: bool


class ApicUse(NamedTuple):
    """`kvm_eoi`, `kvm_pv_eoi`, `kvm_apic`: the state of an APIC changes, and with it what is blocked."""

    apic: int


class Interlude(NamedTuple):
    """`kvm_userspace_exit`, SMM: others have their hands on the vCPU, so nothing is known of it."""


class PageFault(NamedTuple):
    """`kvm_page_fault`: the address that an EPT violation or a #PF was about."""

    address: int
    error_code: int


Event = (
    Entry
    | Exit
    | NestedExit
    | Reflected
    | NestedEntry
    | EntryRefused
    | InterruptInjected
    | ExceptionInjected
    | Arrival
    | ApicUse
    | Interlude
    | PageFault
)
