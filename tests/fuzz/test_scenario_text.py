"""What the text target asks of the text form, and that it would notice."""

from pathlib import Path

import pytest

from nvmx_core.scenario import text as text_form
from nvmx_core.scenario.words import ScenarioError
from nvmx_fuzz import scenario_text
from nvmx_fuzz.scenario_text import TextError, check_text, read_and_write

CORPUS = Path(__file__).resolve().parents[2] / "corpus"
SEEDS = sorted(CORPUS.rglob("*.scn"))
SEED = b"# why\nversion 1\nL1       inject nmi\nL1       enter\n  expect deliver 0x2\n"


def test_every_scenario_of_the_corpus_is_read_and_written() -> None:
    for path in SEEDS:
        assert read_and_write(path.read_bytes()) is not None, path


@pytest.mark.parametrize(
    "data", [b"", b"\n\n", b"\0", b"version 2", b"\xff\xfe", b"version 1\nL1 inject \xff", b"\xef\xbb\xbf"]
)  # fmt: skip
def test_what_is_no_scenario_is_refused(data: bytes) -> None:
    assert read_and_write(data) is None


def test_signs_in_place_of_bytes_that_are_no_text_are_read() -> None:
    file = read_and_write(b"# \xff\nversion 1\n")
    assert file is not None
    assert file.comments == ("\N{REPLACEMENT CHARACTER}",)


def test_a_long_word_of_unusual_signs_is_refused_in_a_short_line() -> None:
    assert (
        read_and_write("version 1\nL1 inject h{}\n".format("\N{GRINNING FACE}" * 90).encode())
        is None
    )


def test_another_error_of_the_parser_is_passed_on_with_the_way_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stumble(_text: str) -> None:
        raise IndexError("a hole")

    monkeypatch.setattr(scenario_text, "parse_scenario", stumble)
    with pytest.raises(IndexError, match="a hole") as caught:
        check_text(SEED, "there/")
    assert caught.value.__notes__[0].startswith(
        "replay: nvmx-fuzz replay --target fuzz_scenario_text there/crash-"
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [(9, "too far"), (0, "nowhere"), (1, ""), (1, "two\nlines"), (1, "x" * 999)],
)
def test_a_bad_refusal_is_found(line: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_text: str) -> None:
        raise ScenarioError(line, message)

    monkeypatch.setattr(scenario_text, "parse_scenario", refuse)
    with pytest.raises(TextError, match="refused"):
        check_text(SEED)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("version 1", "version 7", "refused"),
        ("L1       enter\n", "", "refused|something else"),
        ("# why", "# what", "something else"),
        ("0x2", "0x3", "something else"),
    ],
)
def test_a_loss_on_the_way_is_found(
    old: str, new: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(file: text_form.ScenarioFile) -> str:
        return text_form.format_file(file).replace(old, new)

    monkeypatch.setattr(scenario_text, "format_file", lose)
    with pytest.raises(TextError, match=said):
        check_text(SEED)
