"""What a campaign may do in its output folder: replace what is its own, and nothing else."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nvmx_fuzz import cli

GOOD = "version 1\nL1 enter\n"
PARTS = ("arrivals", "corpus", "findings", "model-errors", "seeds")


def nvmx_fuzz(*arguments: str | Path, folder: Path | None = None) -> tuple[int, str, str]:
    """Run the command in a process of its own; exit status, output, errors."""
    finished = subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", *map(str, arguments)],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return finished.returncode, finished.stdout, finished.stderr


def refusal(*arguments: str | Path, folder: Path | None = None) -> str:
    """The one line with which a command is refused."""
    status, _, errors = nvmx_fuzz(*arguments, folder=folder)
    assert status == 2, errors
    (line,) = errors.splitlines()
    assert line.startswith("nvmx-fuzz: ")
    return line


def run_into(out: Path) -> list[str | Path]:
    return ["run", "--runs", "500", "--no-seeds", "--plain", "--out", out]


@pytest.fixture(scope="module")
def finished_campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a short campaign, for copies."""
    out = tmp_path_factory.mktemp("own") / "campaign"
    assert nvmx_fuzz(*run_into(out))[0] == 0
    return out


@pytest.fixture
def campaign(finished_campaign: Path, tmp_path: Path) -> Path:
    """An output folder that a test may change."""
    return Path(shutil.copytree(finished_campaign, tmp_path / "campaign"))


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_that_is_not_of_a_campaign_is_left_alone(part: str, tmp_path: Path) -> None:
    precious = tmp_path / "mine" / part / "precious.scn"
    precious.parent.mkdir(parents=True)
    precious.write_text(GOOD)
    line = refusal(*run_into(tmp_path / "mine"))
    assert line.endswith(f"mine/{part}: is not empty, and not of a campaign; choose another --out")
    assert precious.read_text() == GOOD


def test_seeds_in_the_place_of_the_campaigns_own(campaign: Path) -> None:
    seed = campaign / "seeds" / "mine.scn"
    seed.write_text(GOOD)
    line = refusal("run", "--runs", "1", "--corpus", seed.parent, "--out", campaign)
    assert "is where this campaign puts its own seeds" in line
    assert seed.read_text() == GOOD


@pytest.mark.parametrize("part", PARTS)
def test_a_folder_behind_a_link_is_left_alone(part: str, campaign: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text(GOOD)
    shutil.rmtree(campaign / part)
    (campaign / part).symlink_to(elsewhere)
    line = refusal(*run_into(campaign))
    assert line.endswith(f"{part}: is a link, and nothing is written behind one")
    assert {path.name for path in elsewhere.iterdir()} == {"precious"}


@pytest.mark.parametrize("name", [".lock", "libfuzzer.log", "progress.jsonl"])
def test_a_file_behind_a_link_is_left_alone(name: str, campaign: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("hello\n")
    (campaign / name).unlink()
    (campaign / name).symlink_to(precious)
    assert refusal(*run_into(campaign)).endswith("is a link, and nothing is written behind one")
    assert precious.read_text() == "hello\n"


@pytest.mark.parametrize(
    "name",
    [".lock", "libfuzzer.log", "progress.jsonl", "findings/a.bin", f"arrivals/{'0' * 40}"],
)
def test_nothing_waits_for_a_pipe(name: str, campaign: Path) -> None:
    (campaign / name).unlink(missing_ok=True)
    os.mkfifo(campaign / name)
    assert name in refusal(*run_into(campaign))


def test_what_is_no_arrival_is_left_alone(campaign: Path) -> None:
    note = campaign / "arrivals" / "note.txt"
    draft = campaign / "arrivals" / ".something.1.new"
    for path in (note, draft):
        path.write_text("hello\n")
    assert nvmx_fuzz(*run_into(campaign))[0] == 0
    assert note.exists()
    assert not draft.exists()


def test_a_report_does_not_follow_a_link(campaign: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("hello\n")
    (campaign / "report.html").symlink_to(precious)
    assert nvmx_fuzz("report", campaign)[0] == 0
    assert precious.read_text() == "hello\n"
    assert (campaign / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("name", ["nonsense", "../../x", "bug999"])
def test_an_unknown_l0_leaves_nothing(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    assert name in refusal("run", "--l0", name, "--runs", "1", folder=folder)
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "c"}


@pytest.mark.parametrize("command", ["replay", "explain", "corpus check", "corpus stats"])
def test_a_name_with_an_end_of_line_stays_on_one(command: str, tmp_path: Path) -> None:
    path = tmp_path / "bad\n\x1b[31mname.scn"
    path.write_text("hello\n")
    where = tmp_path if command == "corpus stats" else path
    assert "bad\\n\\x1b[31mname.scn:1: " in refusal(*command.split(), where)


@pytest.mark.parametrize("command", ["list", "stats", "pack"])
def test_an_output_folder_is_its_scenarios(command: str, campaign: Path, tmp_path: Path) -> None:
    target = [str(tmp_path / "packed.zip")] if command == "pack" else []
    status, output, errors = nvmx_fuzz("corpus", command, campaign, *target)
    assert (status, errors) == (0, "")
    assert "command.txt" not in output


def test_our_own_bug_is_no_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("the model contradicts itself")

    path = tmp_path / "good.scn"
    path.write_text(GOOD)
    monkeypatch.setattr("nvmx_fuzz.cli_minimize.violations_of", broken)
    assert cli.main(["minimize", str(path)]) == 3
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "nvmx-fuzz: our own bug; please report the lines above"
