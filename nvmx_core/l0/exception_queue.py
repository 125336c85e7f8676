"""The exception queue: what L0 itself raises in L2, merged with what is being delivered.

Interception by L1 is decided when the exception is queued, before any merge (section "Exits during
delivery", step 1). Source: Linux, kvm_multiple_exception, kvm_queue_exception_vmexit.
"""

from nvmx_core.arch.events import (
    DF,
    DOUBLE_FAULT,
    DOUBLE_FAULT_INFO,
    EXCEPTION_CLASS,
    PF,
    VECTOR_MASK,
    event_class,
    merges_to_double_fault,
)
from nvmx_core.l0.log import QUEUE_EXCEPTION
from nvmx_core.l0.reach import (
    DOUBLE_FAULT_MERGED_BY_L0,
    EXCEPTION_FOR_L1_QUEUED,
    EXCEPTION_FOR_L2_QUEUED,
    TRIPLE_FAULT_BY_L0,
)
from nvmx_core.l0.tables import Tables


class ExceptionQueue(Tables):
    """The layer that queues exceptions."""

    __slots__ = ()

    def queue_exception(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        """Raise an exception in L2: for L1 if L1 intercepts it, else pending for L2.

        *payload* goes to CR2 or DR6 when, and only when, the exception is delivered to L2 (Y1). *trap*:
        a debug trap of the finished instruction, ranked P7 rather than before the boundary; its payload
        has the form of the pending-debug field.
        """
        self.request_event = True
        vector = info & VECTOR_MASK
        if self.l1_intercepts_queued(vector, error_code):
            self.queue_vmexit(info, error_code, payload, length, trap)
            return
        if self.exception_injected:
            self._merge(info, error_code, payload, length)
        else:
            self._set_pending(info, error_code, payload, length, trap)

    def l1_intercepts_queued(self, vector: int, error_code: int) -> bool:
        """Whether the exception being queued is an exit for L1."""
        return self.l1_intercepts(vector, error_code)

    def queue_vmexit(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        """Remember an exception that will be exit 0 for L1."""
        self.vmexit_pending = True
        self.vmexit_info = info
        self.vmexit_error_code = error_code
        self.vmexit_payload = payload
        self.vmexit_length = length
        self.vmexit_trap = trap
        self.reach[EXCEPTION_FOR_L1_QUEUED] += 1
        self.log.append((QUEUE_EXCEPTION, len(self.journal), info, 1))

    def _set_pending(
        self, info: int, error_code: int, payload: int, length: int, trap: bool
    ) -> None:
        self.exception_pending = True
        self.exception_injected = False
        self.exception_info = info
        self.exception_error_code = error_code
        self.exception_payload = payload
        self.exception_length = length
        self.exception_trap = trap
        self.reach[EXCEPTION_FOR_L2_QUEUED] += 1
        self.log.append((QUEUE_EXCEPTION, len(self.journal), info, 0))

    def _merge(self, info: int, error_code: int, payload: int, length: int) -> None:
        """The new exception meets one that is being delivered: triple fault, #DF, or it takes its place."""
        first = event_class(self.exception_info)
        vector = info & VECTOR_MASK
        if vector == PF and (
            first == DOUBLE_FAULT or merges_to_double_fault(first, EXCEPTION_CLASS[vector])
        ):
            self.cpu.cr2 = payload
        if first == DOUBLE_FAULT:
            self.exception_injected = False
            self.request_triple_fault = True
            self.reach[TRIPLE_FAULT_BY_L0] += 1
            return
        if not merges_to_double_fault(first, EXCEPTION_CLASS[vector]):
            self._set_pending(info, error_code, payload, length, False)
            return
        self.exception_injected = False
        self.reach[DOUBLE_FAULT_MERGED_BY_L0] += 1
        if self.l1_intercepts_queued(DF, 0):
            self.queue_vmexit(DOUBLE_FAULT_INFO, 0, 0, length, False)
        else:
            self._set_pending(DOUBLE_FAULT_INFO, 0, 0, 0, False)

    def forget_exception(self) -> None:
        """Take the pending exception out of the queue: it became an exit, or part of one."""
        self.exception_pending = False
        self.vmexit_pending = False
