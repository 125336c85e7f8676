"""What the tests of the image share: a processor, scenarios that stand alone, lines of the image."""

from nvmx_core.arch.fields import POISON
from nvmx_core.journal import END, EXIT, L1_ENTRY, L1_INTERRUPT, L1_NMI, VMFAIL, Record
from nvmx_core.scenario.steps import Scenario
from nvmx_core.scenario.text import parse_scenario
from nvmx_fuzz.boot import places
from nvmx_fuzz.boot.capabilities import Capabilities
from nvmx_fuzz.boot.moved import stand_alone_moved
from nvmx_fuzz.boot.program import boot_program
from nvmx_fuzz.boot.standalone import Delivery, Standalone
from nvmx_fuzz.boot.wire import Line, RawRecord, checksum, whole_lines

KVM_ON_BOCHS = Capabilities(
    (
        0xD8100011E57ED0, 0x7F00000016, 0xF7F9FFFE0401E172, 0x7FFFFF00036DFF, 0xF3FF000011FF, 0x20000165,
        0x80000021, 0xFFFFFFFF, 0x2000, 0x172FFF, 0x32, 0x27BFF00000000, 0xF0106334041,
    ),
    sti_blocks_nmi=True,
    saves_rf=False,
)  # fmt: skip
"""What L1 is offered, as the image read it, of Linux 6.1 on Bochs, without the monitor trap flag."""
WITH_MONITOR = KVM_ON_BOCHS._replace(has_monitor=True)


def scenario(text: str) -> Scenario:
    return parse_scenario(f"version 1\n{text}").scenario


def standing(text: str, capabilities: Capabilities = KVM_ON_BOCHS) -> Standalone:
    return stand_alone_moved(scenario(text), capabilities)


def printed(body: str) -> Line:
    """A line with this text, as it arrives."""
    (line,) = whole_lines(f"{body} *{checksum(body.encode()):x}\n")
    return line


def perfect_line(expected: Standalone) -> Line:
    """The line of a machine that shows what the model does: an account of the image's side of the wire."""
    stays = iter(expected.stays)
    realised = expected.realised
    stacks = iter(realised.stacks)
    records: list[RawRecord] = []
    events: list[RawRecord] = []
    stack: dict[int, int] = {}
    handler = boot_program().labels["op_open"]
    count = 0
    for record in realised.journal:
        if record[0] == L1_ENTRY:
            stack = {}
            for delivery in next(stays):
                stack.update(_frame(delivery))
        elif record[0] == EXIT:
            records += [RawRecord("x", _exit(record, next(stacks)[0])), *_changes(stack)]
            count += 1
        elif record[0] == VMFAIL:
            records.append(RawRecord("v", record[1:2]))
            count += 1
        elif record[0] == L1_INTERRUPT:
            events.append(RawRecord("i", (record[1], handler, count)))
        elif record[0] == L1_NMI:
            events.append(RawRecord("n", (2, handler, count)))
        elif record[0] == END:
            if expected.ends_in_l2:
                records += [RawRecord("x", _stop(record)), *_changes(stack)]
                count += 1
            records.append(RawRecord("z", _registers(record)))
            if record[4]:
                events.append(RawRecord("n", (2, handler, count + 1)))
    return Line("#", 0, (*records, *events))


def _frame(delivery: Delivery) -> dict[int, int]:
    _kind, _vector, error_code, rip, rflags, *_ = delivery.record
    words = [rip, 8, rflags]
    if error_code != POISON:
        words.insert(0, error_code)
    return {delivery.address + 4 * index: word for index, word in enumerate(words)}


def _changes(stack: dict[int, int]) -> list[RawRecord]:
    changes = tuple(
        (address - places.STACK_BOTTOM >> 2, word) for address, word in sorted(stack.items())
    )
    return [RawRecord("s", (), changes)] if changes else []


def _exit(record: Record, stack_pointer: int) -> tuple[int, ...]:
    values = [0 if value == POISON else value for value in record[1:]]
    values[10] = stack_pointer
    values[12] = values[12] << 5
    return tuple(values)


def _stop(record: Record) -> tuple[int, ...]:
    values = [0] * 23
    _kind, _mode, *_, rip, rflags, activity, interruptibility = record
    values[0], values[9], values[11], values[13], values[14] = (
        18,
        rip,
        rflags,
        interruptibility,
        activity,
    )
    return tuple(values)


def _registers(record: Record) -> tuple[int, ...]:
    irr, isr = record[2], record[3]
    return tuple(value >> 32 * index & 0xFFFFFFFF for value in (irr, isr) for index in range(8))
