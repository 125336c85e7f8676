"""One step as one line of text, derived from the table of operations.

``L1 inject external-interrupt 0x40``: the actor, the operation, its operands in the order of the
table. Enumerations go by name, vectors and values are hexadecimal, counts decimal. Left out are:
the moment ``now``, an instruction's operand 0, an event's error code 0 and length 0, and the vector
of an event type that has only one. ``L2 hlt`` is ``L2 run hlt``.
"""

from collections.abc import Collection, Sequence
from typing import Final

from nvmx_core.arch.instructions import INSTRUCTION_INDEX
from nvmx_core.scenario.steps import (
    INJECT,
    L0,
    L1,
    L2,
    OPERATION_INDEX,
    OPERATIONS,
    OUTSIDE,
    RUN,
    VMWRITE,
    VMWRITE_MAX,
    WRITABLE_FIELDS,
    Operand,
    Operation,
    Step,
    inject_error_code,
    inject_length,
    vmwrite_value,
)
from nvmx_core.scenario.words import (
    EXCEPTION_TYPES,
    USUAL_VECTOR,
    WordError,
    quoted,
    read_name,
    read_number,
    read_vector,
    show_exception,
    unknown,
)

ACTORS: Final = (L1, L2, OUTSIDE, L0)

ANY: Final = "any"
"""Stands for the value of an operand that does not matter."""
_ACTOR_WIDTH: Final = 9

# Operands of the table that the text writes as name=value, and those that it leaves out when they
# are 0.
_KEYED: Final = ("error", "length")
_LEFT_OUT_AT_ZERO: Final = ("when", "operand")

assert not {operation.name for operation in OPERATIONS if operation.actor == L2} & set(
    INSTRUCTION_INDEX
)


def parse_step(words: Sequence[str]) -> Step:
    """One step from its words, the actor first; raises WordError."""
    op, rest = _parse_operation(words)
    operation = OPERATIONS[op]
    keyed, positional = _split_keyed(operation, rest)
    values: list[int] = []
    position = 0
    for operand in operation.operands:
        if operand.name in keyed:
            value = read_number(keyed[operand.name], operand.limit, operand.name)
        elif operand.name in _KEYED:
            value = 0
        elif operand.flags:
            value = _parse_flags(positional[position:], operand)
            position = len(positional)
        elif position < len(positional):
            value = _parse_operand(op, operand, positional[position], values)
            position += 1
        else:
            value = _left_out(op, operand, values)
        values.append(value)
    if position < len(positional):
        raise WordError(f"unexpected {quoted(positional[position])} after {_usage(operation)}")
    return pack_step(op, values)


def _parse_operation(words: Sequence[str]) -> tuple[int, Sequence[str]]:
    """The index of the operation and the words of its operands."""
    actor = words[0]
    if actor not in ACTORS:
        raise unknown("actor", actor, (*ACTORS, "config", "expect"))
    names = [operation.name for operation in OPERATIONS if operation.actor == actor]
    if len(words) == 1:
        raise WordError(f"what does {actor} do? One of {', '.join(names)}")
    op = OPERATION_INDEX.get(f"{actor} {words[1]}")
    if op is not None:
        return op, words[2:]
    if actor == L2:
        if words[1] in INSTRUCTION_INDEX:
            return RUN, words[1:]
        names += INSTRUCTION_INDEX
    raise unknown(f"step of {actor}", words[1], names)


def _split_keyed(
    operation: Operation, words: Sequence[str]
) -> tuple[dict[str, str], Sequence[str]]:
    keys = [operand.name for operand in operation.operands if operand.name in _KEYED]
    keyed: dict[str, str] = {}
    positional: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            positional.append(word)
        elif name not in keys:
            raise unknown(f"operand of {operation.name}", name, keys or ["no name=value operand"])
        elif name in keyed:
            raise WordError(f"{name} is given twice")
        else:
            keyed[name] = value
    return keyed, positional


def _parse_flags(words: Sequence[str], operand: Operand) -> int:
    bits = 0
    for word in words:
        bits |= 1 << read_name(word, operand.names, operand.name)
    return bits


def _parse_operand(op: int, operand: Operand, word: str, before: Sequence[int]) -> int:
    """The value of an operand; *before* are the values of those before it."""
    if op == VMWRITE and operand.name == "value":
        field = before[0]
        return read_number(word, VMWRITE_MAX[field] + 1, f"value of {WRITABLE_FIELDS[field]}")
    if operand.names:
        return read_name(word, operand.names, operand.name)
    if operand.name in ("vector", "exception"):
        return read_vector(word, operand.limit, operand.name)
    return read_number(word, operand.limit, f"{operand.name} of {OPERATIONS[op].name}")


def _left_out(op: int, operand: Operand, values: Sequence[int]) -> int:
    """The value of an operand that the line does not give; *values* are the ones before it."""
    if operand.name in _LEFT_OUT_AT_ZERO:
        return 0
    if op == INJECT and operand.name == "vector" and values[0] in USUAL_VECTOR:
        return USUAL_VECTOR[values[0]]
    raise WordError(f"the {operand.name} is missing: {_usage(OPERATIONS[op])}")


def _usage(operation: Operation) -> str:
    """How a line of an operation looks."""
    words = [operation.actor, operation.name]
    for operand in operation.operands:
        if operand.name in _KEYED:
            words.append(f"[{operand.name}=...]")
        elif operand.flags or operand.name in _LEFT_OUT_AT_ZERO:
            words.append(f"[{operand.name}]")
        else:
            words.append(f"<{operand.name}>")
    return " ".join(words)


def pack_step(op: int, values: Sequence[int]) -> Step:
    """The step with these operand values, in the order of the table."""
    if op == INJECT:
        event_type, vector, error_code, length = values
        return op, event_type, vector, error_code | length << 16
    if op == VMWRITE:
        field, value = values
        return op, field, value >> 32, value & 0xFFFFFFFF
    a = b = 0
    for operand, value in zip(OPERATIONS[op].operands, values, strict=True):
        if operand.place == "a":
            a = value
        else:
            b = value
    return op, a, b, 0


def operand_values(step: Step) -> tuple[int, ...]:
    """The values of a step's operands, in the order of the table."""
    op, a, b, c = step
    if op == INJECT:
        return a, b, inject_error_code(c), inject_length(c)
    if op == VMWRITE:
        return a, vmwrite_value(b, c)
    return tuple(a if operand.place == "a" else b for operand in OPERATIONS[op].operands)


def format_step(step: Step, *, compact: bool = False, free: Collection[int] = ()) -> str:
    """The canonical line of a canonical step; *compact* without the columns.

    The operands in the places *free* are shown as ``any``, unless they are left out.
    """
    op = step[0]
    operation = OPERATIONS[op]
    words: list[str] = [] if op == RUN else [operation.name]
    for place, value in enumerate(operand_values(step)):
        word = _show_operand(step, operation.operands[place], value)
        if word and place in free:
            key, equals, _ = word.rpartition("=")
            words.append(f"{key}{equals}{ANY}")
        elif word:
            words.append(word)
    actor = f"{operation.actor} " if compact else operation.actor.ljust(_ACTOR_WIDTH)
    return actor + " ".join(words)


def _show_operand(step: Step, operand: Operand, value: int) -> str:
    """The word of one operand; "" for one that is left out."""
    if operand.flags:
        return " ".join(name for bit, name in enumerate(operand.names) if value >> bit & 1)
    if value == 0 and (operand.name in _KEYED or operand.name in _LEFT_OUT_AT_ZERO):
        return ""
    if operand.names:
        return operand.names[value]
    if step[0] == INJECT and operand.name == "vector":
        if value == USUAL_VECTOR.get(step[1], -1):
            return ""
        return show_exception(value) if step[1] in EXCEPTION_TYPES else f"{value:#x}"
    if operand.name == "exception":
        return show_exception(value)
    word = f"{value}" if operand.decimal else f"{value:#x}"
    return f"{operand.name}={word}" if operand.name in _KEYED else word
