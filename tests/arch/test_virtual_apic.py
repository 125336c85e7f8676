"""The arithmetic of APIC virtualization, which the processor and L0 share (K3, K4, P2)."""

import pytest

from nvmx_core.arch.fields import FIELD_COUNT, GUEST_INTR_STATUS
from nvmx_core.arch.virtual_apic import (
    tpr_is_below_threshold,
    virtual_interrupt_is_recognised,
    with_request,
)
from nvmx_core.guests.memory import L2Memory


@pytest.mark.parametrize(
    ("svi", "rvi", "vtpr", "recognised"),
    [
        (0, 0x20, 0, True),
        (0, 0x0F, 0, False),
        (0, 0x2F, 0x20, False),
        (0, 0x30, 0x2F, True),
        (0x20, 0x2F, 0, False),
        (0x2F, 0x30, 0, True),
        (0x30, 0x41, 0x20, True),
        (0x20, 0x41, 0x40, False),
        (0x40, 0x41, 0x20, False),
    ],
)
def test_k4_rvi_is_compared_by_class_with_the_higher_of_vtpr_and_svi(
    svi: int, rvi: int, vtpr: int, recognised: bool
) -> None:
    assert virtual_interrupt_is_recognised(svi << 8 | rvi, vtpr) == recognised


@pytest.mark.parametrize(
    ("status", "vector", "after"),
    [(0x3020, 0x41, 0x3041), (0x3041, 0x20, 0x3041), (0x3041, -1, 0x3041), (0, -1, 0)],
)
def test_k3_a_request_raises_rvi_and_leaves_svi(status: int, vector: int, after: int) -> None:
    assert with_request(status, vector) == after


def test_k3_posted_vectors_move_and_the_highest_is_requested() -> None:
    memory = L2Memory()
    vmcs = [0] * FIELD_COUNT
    vmcs[GUEST_INTR_STATUS] = 0x3020
    memory.virr = 1 << 0x20
    memory.post_interrupt(0x51)
    memory.post_interrupt(0x41)
    assert memory.take_posted_interrupts(vmcs) == 0x51
    assert (memory.pir, memory.virr) == (0, 1 << 0x20 | 1 << 0x41 | 1 << 0x51)
    assert vmcs[GUEST_INTR_STATUS] == 0x3051
    assert memory.take_posted_interrupts(vmcs) == -1
    assert vmcs[GUEST_INTR_STATUS] == 0x3051


@pytest.mark.parametrize(
    ("vtpr", "threshold", "below"),
    [(0x20, 3, True), (0x2F, 3, True), (0x30, 3, False), (0, 0, False), (0x20, 0x12, False)],
)
def test_p2_the_threshold_is_compared_with_the_class_of_vtpr(
    vtpr: int, threshold: int, below: bool
) -> None:
    assert tpr_is_below_threshold(vtpr, threshold) == below
