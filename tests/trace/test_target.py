"""What the target of traces asks of the reader, and that it would notice."""

from pathlib import Path

import pytest

from nvmx_fuzz.trace import reader, target
from nvmx_fuzz.trace.check import Check
from nvmx_fuzz.trace.reader import Lines
from nvmx_fuzz.trace.target import TraceError, check_trace, examine, trace_cmd_spelling
from nvmx_fuzz.trace.vcpu import Vcpu
from tests.trace.cases import FIRING, SILENT
from tests.trace.seeds import FOLDER, seeds
from tests.trace.writer import FORMS

SAMPLE = (Path(__file__).parent / "kvm-6.1.txt").read_bytes()
BUG = next(case for case in FIRING if case.name == "the original bug").trace().render(FORMS["6.1"])
GONE = next(case for case in FIRING if case.name == "gone").trace().render(FORMS["6.1"])


def test_the_seeds_are_those_of_the_table() -> None:
    found = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert found == seeds(), "run: python -m tests.trace.seeds"


def test_every_seed_and_the_real_trace_keep_what_the_reader_promises() -> None:
    for content in (*seeds().values(), SAMPLE):
        assert not examine(content).refused_line


@pytest.mark.parametrize("case", [*FIRING, *SILENT], ids=lambda case: f"{case.rule} {case.name}")
def test_a_situation_keeps_it_in_the_oldest_and_the_newest_spelling(case: object) -> None:
    for name in ("4.8-plugin", "6.13"):
        examine(case.trace().render(FORMS[name]))  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\0", b"\xff\xfe\n", b"x" * 70_000, b"a\nb\0c\n"])
def test_what_is_no_trace_is_refused_at_a_line(data: bytes) -> None:
    examine(data)


def test_the_spelling_of_trace_cmd_leaves_out_flags_and_pads_names() -> None:
    line = b"            nvmx-111     [000] d..1.     0.682384: kvm_entry: vcpu 0, rip 0xa00200"
    wanted = b"            nvmx-111     [000]  0.682384: kvm_entry:            vcpu 0, rip 0xa00200"
    assert trace_cmd_spelling(line) == wanted
    assert trace_cmd_spelling(b"# tracer: nop") == b"# tracer: nop"


def test_an_error_of_the_reader_is_passed_on_with_the_way_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stumble(_self: Lines, _chunk: bytes) -> list[bytes]:
        raise IndexError("a hole")

    monkeypatch.setattr(Lines, "feed", stumble)
    with pytest.raises(IndexError, match="a hole") as caught:
        check_trace(BUG, "there/")
    assert caught.value.__notes__[0].startswith(
        "replay: nvmx-fuzz replay --target fuzz_trace_reader there/crash-"
    )


def test_a_verdict_that_depends_on_chunks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = Lines.feed
    monkeypatch.setattr(
        Lines, "feed", lambda self, chunk: feed(self, chunk.replace(b"vcpu", b"VCPU"))
    )
    with pytest.raises(TraceError, match="another verdict in chunks of 3"):
        examine(BUG)


def test_a_verdict_that_depends_on_the_spelling_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        target, "trace_cmd_spelling", lambda data: data.replace(b"kvm_inj", b"kvm_injected")
    )
    with pytest.raises(TraceError, match="another verdict in the spelling of trace-cmd"):
        examine(GONE)


def test_a_conclusion_across_lost_events_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vcpu, "forget", lambda _self: None)
    with pytest.raises(TraceError, match="X13 speaks across lost events"):
        examine(GONE)


def test_a_line_that_is_not_there_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = Check._take

    def shifted(self: Check, lines: list[bytes]) -> None:
        self._number += 1
        taken(self, lines)

    monkeypatch.setattr(Check, "_take", shifted)
    with pytest.raises(TraceError):
        examine(BUG)


def test_a_report_that_cannot_be_printed_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target, "text_of", lambda _name, _check: "\x1b[31m")
    with pytest.raises(TraceError, match="cannot be printed"):
        examine(BUG)


def test_lines_longer_than_any_are_refused_where_they_stand() -> None:
    data = BUG + b"x" * (reader.LINE_LENGTH_MAX + 1) + b"\n" + BUG
    assert examine(data).refused_line == BUG.count(b"\n") + 1
