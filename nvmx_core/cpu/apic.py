"""The local APIC as far as interrupts need it: requests, service, priority.

Source: SDM, "Interrupt, Task, and Processor Priority", "Interrupt Acceptance for Fixed Interrupts".
"""

NO_VECTOR = -1


class LocalApic:
    """IRR and ISR as 256-bit integers, and a ledger of what was accepted and acknowledged.

    The ledger lists vectors in order; the conservation oracle balances it at the end of a run.
    """

    __slots__ = (
        "accepted",
        "acknowledged",
        "irr",
        "isr",
    )

    def __init__(self) -> None:
        self.accepted: list[int] = []
        self.acknowledged: list[int] = []
        self.irr: int = 0
        self.isr: int = 0

    def request(self, vector: int) -> None:
        """Latch an interrupt; a vector that is already latched is the same interrupt."""
        bit = 1 << vector
        if not self.irr & bit:
            self.irr |= bit
            self.accepted.append(vector)

    def deliverable(self) -> int:
        """The vector that the APIC offers now: the highest request above the class in service, or -1."""
        if not self.irr:
            return NO_VECTOR
        vector = self.irr.bit_length() - 1
        if self.isr and vector >> 4 <= (self.isr.bit_length() - 1) >> 4:
            return NO_VECTOR
        return vector

    def acknowledge(self, vector: int) -> None:
        """Move a vector from request to service."""
        self.irr &= ~(1 << vector)
        self.isr |= 1 << vector
        self.acknowledged.append(vector)

    def end_of_interrupt(self) -> None:
        """Retire the highest vector in service, if there is one."""
        if self.isr:
            self.isr &= ~(1 << (self.isr.bit_length() - 1))
