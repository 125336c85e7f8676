"""What is kept of a trace of the kernel."""

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz.boot.finding_traces import PAGE, excerpt
from nvmx_fuzz.boot.known_findings import known_findings

TRACE = """\
# tracer: nop
 vmm-101 [000] d..1.  62.10: kvm_entry: vcpu 0, rip 0x16000 intr_info 0x00000000
 vmm-101 [000] .....  62.11: kvm_nested_vmenter: rip: 0x000000000010054c vmcs: 0x113000 nested_rip: 0x16000
 vmm-101 [000] d..1.  62.12: kvm_exit: vcpu 0 reason EPT_VIOLATION rip 0x16000 info1 0x0000000000000081
 vmm-101 [000] d..1.  62.13: kvm_page_fault: vcpu 0 rip 0x16000 address 0x8000
 vmm-101 [000] d..1.  62.14: kvm_entry: vcpu 0, rip 0x16000[immediate exit]
 vmm-101 [000] d..1.  62.15: kvm_entry: vcpu 0, rip 0x16000[immediate exit]
 vmm-101 [000] .....  62.16: kvm_nested_vmexit_inject: reason: INIT_SIGNAL ext_inf1: 0x0000000000000000
 vmm-101 [000] d..1.  62.17: kvm_entry: vcpu 0, rip 0x1004b8
"""


def test_it_tells_what_became_of_the_entries() -> None:
    assert excerpt(TRACE) == [
        "kvm_nested_vmenter: rip: 0x10054c nested_rip: 0x16000",
        "kvm_entry: vcpu 0, rip 0x16000[immediate exit]",
        "kvm_nested_vmexit_inject: reason: INIT_SIGNAL ext_inf1: 0x0",
    ]


def test_a_trace_without_an_entry_tells_nothing() -> None:
    assert excerpt("# tracer: nop\n") == []


def test_the_page_has_every_finding_of_its_kernel() -> None:
    text = PAGE.read_text()
    for known in known_findings((6, 1)):
        assert f"\n## {known.number} {known.name}\n" in text
