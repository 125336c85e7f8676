"""The arithmetic of APIC virtualization: priority classes and the guest interrupt status.

The guest interrupt status holds RVI in bits 7:0 and SVI in bits 15:8; priority classes are bits 7:4.

Source: SDM, "PPR Virtualization", "Evaluation of Pending Virtual Interrupts", "TPR Virtualization".
"""

from typing import Final

RVI_MASK: Final = 0xFF
SVI_MASK: Final = 0xFF00
SVI_SHIFT: Final = 8
CLASS_SHIFT: Final = 4


def virtual_interrupt_is_recognised(interrupt_status: int, vtpr: int) -> bool:
    """K4: the class of RVI is above that of VPPR, which is the higher one of VTPR and SVI."""
    rvi_class = (interrupt_status & RVI_MASK) >> CLASS_SHIFT
    return (
        rvi_class > vtpr >> CLASS_SHIFT and rvi_class > interrupt_status >> SVI_SHIFT + CLASS_SHIFT
    )


def with_request(interrupt_status: int, vector: int) -> int:
    """The guest interrupt status after a virtual interrupt was requested: RVI is at least its vector.

    *vector* -1 stands for none.
    """
    return interrupt_status & SVI_MASK | max(interrupt_status & RVI_MASK, vector)


def tpr_is_below_threshold(vtpr: int, threshold: int) -> bool:
    """P2, O8, C6: VTPR[7:4] is below bits 3:0 of the TPR threshold."""
    return vtpr >> CLASS_SHIFT < threshold & 0xF
