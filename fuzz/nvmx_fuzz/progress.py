"""What the fuzzing process of a campaign tells its parent: numbers in shared memory, events by pipe.

The numbers are written every few executions and read at any time, also after the process is gone;
they may be a few executions old. Events are lines of JSON, few and far between.

The fuzzing process imports this before it instruments the model: nothing here imports the model.
"""

import json
import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Final

REACH_MAX: Final = 256
"""Room for that many reach counters."""

RULES_MAX: Final = 64
"""Room for that many rules."""

OUT_OF_MEMORY: Final = 71
"""The status of a fuzzing process that has no memory left; libFuzzer's own where its limit is reached."""

_EXECUTIONS: Final = 0
_STEPS: Final = 1
_SKIPPED: Final = 2
_VIOLATING: Final = 3
_REACH: Final = 8
_FIRED: Final = _REACH + REACH_MAX
_WORDS: Final = _FIRED + RULES_MAX
MEMORY_SIZE: Final = 8 * _WORDS


@dataclass(frozen=True)
class Order:
    """What a fuzzing process is to do; `runs` 0 is without end, `reload` 0 nobody else's corpus."""

    l0: str
    core: str
    feedback: str
    seed: int
    runs: int
    reload: int
    corpus: str
    seeds: str
    artifacts: str
    arrivals: str
    memory: int
    messages: int
    parent: int

    def to_json(self) -> str:
        """The order as one argument of a command."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Order":
        """The order that `to_json` wrote."""
        return cls(**json.loads(text))


class Progress:
    """The shared numbers; the descriptor is that of a file of MEMORY_SIZE bytes."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind *descriptor*."""
        self._words: Final = memoryview(mmap.mmap(descriptor, MEMORY_SIZE)).cast("Q")

    def publish(
        self,
        executions: int,
        steps: int,
        skipped: int,
        violating: int,
        reach: Sequence[int],
        fired: Sequence[int],
    ) -> None:
        """Make the numbers visible to the other process; *reach* and *fired* are totals, in their order."""
        words = self._words
        words[_EXECUTIONS] = executions
        words[_STEPS] = steps
        words[_SKIPPED] = skipped
        words[_VIOLATING] = violating
        for index, count in enumerate(reach, start=_REACH):
            words[index] = count
        for index, count in enumerate(fired, start=_FIRED):
            words[index] = count

    @property
    def executions(self) -> int:
        """How many inputs were run."""
        return self._words[_EXECUTIONS]

    @property
    def steps(self) -> int:
        """How many steps these inputs had."""
        return self._words[_STEPS]

    @property
    def skipped(self) -> int:
        """How many of these steps could not apply."""
        return self._words[_SKIPPED]

    @property
    def violating(self) -> int:
        """How many inputs violated an oracle."""
        return self._words[_VIOLATING]

    def reach(self, count: int) -> list[int]:
        """The totals of the first *count* reach counters."""
        return list(self._words[_REACH : _REACH + count])

    def fired(self, count: int) -> list[int]:
        """How many inputs broke each of the first *count* rules, in the order of RULE_ROWS."""
        return list(self._words[_FIRED : _FIRED + count])


class Totals:
    """The numbers of several fuzzing processes, added up."""

    def __init__(self, parts: Sequence[Progress]) -> None:
        """Add up *parts*, of which there is at least one."""
        self._parts: Final = parts

    @property
    def executions(self) -> int:
        """How many inputs were run."""
        return sum(part.executions for part in self._parts)

    @property
    def steps(self) -> int:
        """How many steps these inputs had."""
        return sum(part.steps for part in self._parts)

    @property
    def skipped(self) -> int:
        """How many of these steps could not apply."""
        return sum(part.skipped for part in self._parts)

    @property
    def violating(self) -> int:
        """How many inputs violated an oracle."""
        return sum(part.violating for part in self._parts)

    def reach(self, count: int) -> list[int]:
        """The totals of the first *count* reach counters."""
        return [sum(column) for column in zip(*(p.reach(count) for p in self._parts), strict=True)]

    def fired(self, count: int) -> list[int]:
        """How many inputs broke each of the first *count* rules, in the order of RULE_ROWS."""
        return [sum(column) for column in zip(*(p.fired(count) for p in self._parts), strict=True)]


@dataclass(frozen=True)
class Message:
    """One event.

    `kind` is "ready" (*text*: the feedback mode, *count*: its probes), "finding" (*data*: an input
    that violates an oracle) or "model-error" (*data*: the input, *text*: what was raised).
    """

    kind: str
    text: str = ""
    data: bytes = b""
    count: int = 0


def send(descriptor: int, message: Message) -> None:
    """Write one message; waits when the reader is behind."""
    record = {
        "kind": message.kind,
        "text": message.text,
        "data": message.data.hex(),
        "count": message.count,
    }
    line = memoryview(json.dumps(record).encode() + b"\n")
    while line:
        line = line[os.write(descriptor, line) :]


class Inbox:
    """Puts messages together from what a pipe gives."""

    def __init__(self) -> None:
        """Start with nothing received."""
        self._rest = b""

    def feed(self, received: bytes) -> Iterator[Message]:
        """The messages that are complete with these bytes."""
        *lines, self._rest = (self._rest + received).split(b"\n")
        for line in lines:
            record = json.loads(line)
            yield Message(
                record["kind"], record["text"], bytes.fromhex(record["data"]), record["count"]
            )
