"""The line of a scenario as a journal, and what of the model's journal can be seen so.

L1 sees exits, VMfails and what it takes itself. What L2 takes, it leaves on its stack: L1 has made the
dead part of the stack unrecognisable before each entry, so the words that are different after an exit
were pushed in between. SMIs show where they came, but not in which order with exits: they stand in front of
the end. Not to be seen, and left out of both journals: the instructions that L2 completes, CR2 and DR6 at a
delivery (an exit shows them), whether NMIs are blocked or an INIT is latched at the end, and a frame that a
later one has overwritten, which is taken as expected.
"""

import zlib
from collections.abc import Sequence
from typing import Final

from nvmx_core.arch.state import RFLAGS_RF
from nvmx_core.guests.memory import HANDLER_BASE, HANDLER_SHIFT, handler_rip
from nvmx_core.journal import (
    DELIVER,
    END,
    EXIT,
    L1_ENTRY,
    L1_INTERRUPT,
    L1_NMI,
    L1_SPURIOUS_EVENT,
    RECORD_FIELDS,
    RETIRE,
    SMM_ENTRY,
    SMM_RETURN,
    VMFAIL,
    Record,
)
from nvmx_core.machines.modes import MODE_L1, MODE_L2
from nvmx_fuzz.bochs.machine import LOG_STOP, Journal
from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.program import while_recording
from nvmx_fuzz.boot.standalone import Delivery, Standalone
from nvmx_fuzz.boot.wire import Line, RawRecord
from nvmx_fuzz.realise import layout

_CODE_SELECTORS: Final = (layout.L2_CODE_SELECTOR, layout.L2_USER_CODE_SELECTOR)
_NO_ERROR_CODE: Final = (1 << 64) - 1
_RIP: Final = 9
_REASON: Final = 0
_TIMER: Final = RECORD_FIELDS[EXIT].index("preemption timer")
_END_RIP: Final = 1 + RECORD_FIELDS[END].index("rip")
_END_SMI: Final = 1 + RECORD_FIELDS[END].index("smi latched")
_HIDDEN: Final = (RETIRE, SMM_ENTRY, SMM_RETURN)
_RFLAGS: Final = {kind: 1 + RECORD_FIELDS[kind].index("rflags") for kind in (EXIT, DELIVER)}


def checksum(seen: list[Record]) -> int:
    """Of what can be seen of a journal: what an outcome keeps of it."""
    return zlib.crc32(repr(seen).encode())


def visible(journal: Sequence[Record], *, has_rf: bool = True) -> list[Record]:
    """What of a journal can be seen on a machine without a helper.

    *has_rf*: RFLAGS.RF of an exit, and of a frame that was pushed after one, means something there.
    """
    seen = [_visible_record(each, has_rf) for each in journal if each[0] not in _HIDDEN]
    managed = [record for record in journal if record[0] == SMM_ENTRY]
    if journal and journal[-1][0] == END and journal[-1][_END_SMI]:
        managed.append((SMM_ENTRY, 0, 0))  # L1, which is back, takes it
    return [*seen[:-1], *managed, *seen[-1:]]


def _visible_record(record: Record, has_rf: bool) -> Record:
    place = _RFLAGS.get(record[0], 0)
    if place and not has_rf:
        record = (*record[:place], record[place] & ~RFLAGS_RF, *record[place + 1 :])
    if record[0] == DELIVER:
        return (*record[:5], 0, 0)
    if record[0] == END:
        kind, mode, irr, isr, latched, _blocked, _init, _smi, *rest = record
        return (kind, mode, irr, isr, latched, 0, 0, 0, *rest)
    return record


def journal_of(
    line: Line, expected: Standalone, smm: Sequence[tuple[int, int]] = ()
) -> list[Record]:
    """The journal that a line shows, before :func:`visible`.

    *expected* says where frames stand, and what L1 entered with; *smm*: where SMIs came.
    """
    log = _Log(line, expected).items()
    journal = Journal(expected.realised).read(log).journal
    return [*journal[:-1], *((SMM_ENTRY, *place) for place in smm), *journal[-1:]]


class _Log:
    """The records of a line in the form, and in the order, of the helper's log."""

    def __init__(self, line: Line, expected: Standalone) -> None:
        self._expected: Final = expected
        self._events: Final = [record for record in line.records if record.letter in "inu"]
        self._records: Final = [record for record in line.records if record.letter not in "inus"]
        self._stacks: Final = _stacks(line.records)
        self._rests: Final = _rests(expected, _RIP, _END_RIP)
        self._timers: Final = _rests(expected, _TIMER, 0)
        self._end: Final = next(
            (index for index, record in enumerate(self._records) if record.letter == "z"),
            len(self._records),
        )
        self._stop: Final = self._end - 1 if self._is_stopped() else self._end

    def _is_stopped(self) -> bool:
        """Whether the last exit is the one that ends a scenario in L2."""
        entries = sum(1 for record in self._expected.realised.journal if record[0] == L1_ENTRY)
        last = self._records[self._end - 1] if self._end else None
        return (
            self._expected.ends_in_l2
            and self._end == entries
            and last is not None
            and last.letter == "x"
            and last.values[_REASON] == self._expected.last_exit
        )

    def items(self) -> list[tuple[int, ...]]:
        """All of it."""
        log: list[tuple[int, ...]] = []
        for index, record in enumerate(self._records[: self._end]):
            log += self._taken(index)
            log.append((L1_ENTRY,))
            log += self._deliveries(index)
            if index < self._stop:
                timer = self._timers[index] if index < len(self._timers) else 0
                log.append(_exit_or_failure(record, timer))
        if self._stop == self._end:
            log += self._taken(self._end)
        log.append(self._stop_item())
        if self._stop < self._end:
            log.append(_exit_or_failure(self._records[self._stop], 0))
        return log

    def _taken(self, index: int) -> list[tuple[int, ...]]:
        """What L1 took between the record before *index* and that one."""
        return [_event(event) for event in self._events if _place(event) == index]

    def _stop_item(self) -> tuple[int, ...]:
        """How the run ended, in the words of the helper's log."""
        registers = self._records[self._end].values if self._end < len(self._records) else (0,) * 16
        irr, isr = _quadwords(registers[:8]), _quadwords(registers[8:])
        latched = any(event.letter == "n" and _place(event) > self._stop for event in self._events)
        mode = MODE_L2 if self._stop < self._end else MODE_L1
        return (LOG_STOP, 0, mode, int(latched), 0, 0, 0, *irr, *isr)

    # -- deliveries -----------------------------------------------------------------------------------

    def _deliveries(self, index: int) -> list[tuple[int, ...]]:
        stays = self._expected.stays
        wanted = stays[index] if index < len(stays) else []
        changed = dict(self._stacks[index])
        rip = self._records[index].values[_RIP] if self._records[index].letter == "x" else 0
        found = _frames(wanted, changed)
        found += _unexpected(changed)
        rests = self._rests[index] if index < len(self._rests) else 0
        return _with_vectors(found, rip, rests)


def _rests(expected: Standalone, of_exit: int, of_end: int) -> list[int]:
    """A field of the model's exits, one for each entry: 0 for a VMfail, the last one of its end."""
    rests = []
    for record in expected.realised.journal:
        if record[0] == EXIT:
            rests.append(record[1 + of_exit])
        elif record[0] == VMFAIL:
            rests.append(0)
        elif record[0] == END and expected.ends_in_l2:
            rests.append(record[of_end])
    return rests


def _stacks(records: Sequence[RawRecord]) -> list[list[tuple[int, int]]]:
    """For each exit and VMfail the words that changed, as addresses."""
    stacks: list[list[tuple[int, int]]] = []
    for record in records:
        if record.letter in "xvz":
            stacks.append([])
        elif record.letter == "s" and stacks:
            stacks[-1] = [(places.STACK_BOTTOM + 4 * index, word) for index, word in record.changes]
    return stacks


def _exit_or_failure(record: RawRecord, timer: int) -> tuple[int, ...]:
    """The record; a timer that has only counted down shows what the model's does, if that runs too."""
    if record.letter != "x":
        return (VMFAIL, *record.values)
    values = list(record.values)
    if timer and values[_TIMER] >= places.LONG_TIMER_LEFT:
        values[_TIMER] = timer
    return (EXIT, *values)


def _place(event: RawRecord) -> int:
    """Before which record L1 took it; while a record is being written it belongs behind that."""
    _vector, rip, count = event.values
    return count + 1 if while_recording(rip) else count


def _event(event: RawRecord) -> tuple[int, ...]:
    if event.letter == "i":
        return (L1_INTERRUPT, event.values[0])
    return (L1_NMI,) if event.letter == "n" else (L1_SPURIOUS_EVENT, event.values[0])


def _quadwords(words: Sequence[int]) -> list[int]:
    return [words[2 * index] | words[2 * index + 1] << 32 for index in range(4)]


class _Frame:
    """A frame on L2's stack: of the model's delivery, or of one that the model does not have."""

    def __init__(self, delivery: Delivery | None, error_code: int, rip: int, rflags: int) -> None:
        self.delivery: Final = delivery
        self.error_code: Final = error_code
        self.rip: Final = rip
        self.rflags: Final = rflags


def _frames(wanted: Sequence[Delivery], changed: dict[int, int]) -> list[_Frame]:
    """The deliveries of the model whose frames are there, or were overwritten; takes their words."""
    last = {address: index for index, delivery in enumerate(wanted) for address in _words(delivery)}
    present = [
        any(address in changed for address in _words(delivery) if last[address] == index)
        for index, delivery in enumerate(wanted)
    ]
    frames = []
    for index, delivery in enumerate(wanted):
        own = [address for address in _words(delivery) if last[address] == index]
        if own and not present[index]:
            continue
        overwritten = [address for address in _words(delivery) if last[address] != index]
        if not own and not all(present[last[address]] for address in overwritten):
            continue
        frames.append(
            _frame(delivery, {address: changed[address] for address in own if address in changed})
        )
    for delivery in wanted:
        for address in _words(delivery):
            changed.pop(address, None)
    return frames


def _words(delivery: Delivery) -> range:
    """The words that tell a delivery: error code, return address, selector, flags."""
    return range(delivery.address, delivery.address + (16 if delivery.has_error_code else 12), 4)


def _frame(delivery: Delivery, seen: dict[int, int]) -> _Frame:
    """The frame with what is seen of it; the rest as expected."""
    _kind, _vector, error_code, rip, rflags, *_ = delivery.record
    address = delivery.address
    if delivery.has_error_code:
        error_code = seen.get(address, error_code)
        address += 4
    else:
        error_code = _NO_ERROR_CODE
    return _Frame(delivery, error_code, seen.get(address, rip), seen.get(address + 8, rflags))


def _unexpected(changed: dict[int, int]) -> list[_Frame]:
    """Frames where the model has none, the oldest first: a selector of code on top of a return address.

    Flags that are what stood there before have not changed, and are not known.
    """
    return [
        _Frame(None, _NO_ERROR_CODE, changed[address - 4], changed.get(address + 4, 0))
        for address in sorted(changed, reverse=True)
        if changed[address] in _CODE_SELECTORS and address - 4 in changed
    ]


def _with_vectors(frames: Sequence[_Frame], exit_rip: int, model_rip: int) -> list[tuple[int, ...]]:
    """The deliveries as the log has them.

    A vector shows where L2 stood afterwards, if in the model it has not gone on from there.
    """
    log: list[tuple[int, ...]] = []
    for index, frame in enumerate(frames):
        after = frames[index + 1].rip if index + 1 < len(frames) else exit_rip
        shown = _vector_at(after)
        vector = frame.delivery.record[1] if frame.delivery else shown
        rests = index + 1 == len(frames) and model_rip == handler_rip(vector)
        if rests and 0 <= shown != vector and after == handler_rip(shown):
            vector = shown
        log.append((DELIVER, max(vector, 0), frame.error_code, frame.rip, frame.rflags, 0, 0))
    return log


def _vector_at(rip: int) -> int:
    """The vector whose handler an address belongs to; -1 for none."""
    vector = rip - HANDLER_BASE >> HANDLER_SHIFT
    return vector if 0 <= vector < 256 else -1
