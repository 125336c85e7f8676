"""`nvmx-fuzz report`: one page about a campaign, running, over or killed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from nvmx_core.l0.reach import REACH_NAMES
from nvmx_fuzz import cli
from nvmx_fuzz.campaign_report import ReportMaker, thinned
from nvmx_fuzz.history import Sample, read_history
from nvmx_fuzz.plots import bars, curve, time_unit
from nvmx_fuzz.rule_rows import RULE_ROWS
from nvmx_fuzz.survey import Survey
from tests.reports import pages
from tests.reports.test_history import START, sample, written

HERE = Path(__file__).resolve().parent
RUN = [sys.executable, "-m", "nvmx_fuzz.cli", "run", "--l0", "bug1", "--plain", "--no-seeds"]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a campaign that found something."""
    pytest.importorskip("atheris")
    folder = tmp_path_factory.mktemp("campaign") / "out put"
    command = [*RUN, "--seed", "3", "--runs", "1500", "--out", str(folder)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 1, finished
    return folder


def small(folder: Path) -> Path:
    """A folder with a short history and nothing else."""
    written(folder, {"start": START}, sample(0), sample(1, 10), sample(2, 20))
    return folder


def words(html: str) -> str:
    return pages.text_of(pages.check(html))


def test_page_is_well_formed_and_tells_what_the_campaign_came_to(campaign: Path) -> None:
    text = words(ReportMaker(campaign).html())
    summary = json.loads((campaign / "summary.json").read_text())
    assert "all runs done" in text
    assert f"{summary['executions']:,}" in text
    assert f"{summary['coverage']:,} counters" in text
    assert f"Findings: {len(summary['findings'])}" in text
    for finding in summary["findings"]:
        assert " ".join(finding["sentence"].split()) in text
        assert finding["replay"] in text
    for name in REACH_NAMES:
        assert name in text
    assert "The slowest" in text


def test_commands_of_the_page_work_in_any_directory(
    campaign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(campaign)
    html = ReportMaker(Path()).html()
    (finding, *_) = json.loads((campaign / "summary.json").read_text())["findings"]
    assert finding["file"].startswith("/")
    assert finding["replay"] in words(html)


def test_every_finding_has_its_diagrams(campaign: Path) -> None:
    tree = pages.check(ReportMaker(campaign).html())
    kinds = [element.get("class") for element in tree.iter(f"{{{pages.NAMESPACE}}}svg")]
    count = len(list((campaign / "findings").glob("*.scn")))
    assert count > 0
    assert kinds.count("diagram wide") == kinds.count("diagram narrow") == count
    assert kinds.count("plot") >= 6


def test_names_inside_a_page_are_unique_and_all_references_lead_somewhere(campaign: Path) -> None:
    tree = pages.check(ReportMaker(campaign).html())
    names = [element.get("id") for element in tree.iter() if element.get("id")]
    assert len(names) == len(set(names))
    for element in tree.iter():
        assert not any("xlink" in attribute for attribute in element.attrib)
        for reference in (element.get("href"), element.get("clip-path")):
            if reference:
                assert reference.removeprefix("url(").rstrip(")").removeprefix("#") in names


def test_history_counts_what_the_summary_counts(campaign: Path) -> None:
    """Reach, violations and the rules that they broke, as of the end."""
    (session,) = read_history(campaign / "progress.jsonl")
    summary = json.loads((campaign / "summary.json").read_text())
    last = session.samples[-1]
    assert dict(zip(session.start["reach"], last.reach, strict=True)) == summary["reach"]
    assert last.numbers["executions"] == summary["executions"] == 1500
    assert last.numbers["violating"] == summary["executions_violating"]
    assert last.numbers["transitions"] > 0
    fired = {(row.oracle, row.rule): n for row, n in zip(RULE_ROWS, last.fired, strict=True)}
    broken = {tuple(finding["key"].split()[:2]) for finding in summary["findings"]}
    assert broken <= {row for row, count in fired.items() if count}
    assert max(last.fired) <= last.numbers["violating"]


def test_command_writes_the_page_into_the_folder(
    campaign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", str(campaign)]) == 0
    assert capsys.readouterr().out == f"{campaign / 'report.html'}\n"
    pages.check((campaign / "report.html").read_text())
    assert cli.main(["report", str(campaign), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page").stat().st_size > 10_000


# -- running, over, killed ---------------------------------------------------------------------------


def test_a_campaign_that_holds_its_lock_runs_and_else_was_killed(tmp_path: Path) -> None:
    maker = ReportMaker(small(tmp_path))
    assert "state was killed" in words(maker.html())
    with (tmp_path / ".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "state runs" in words(maker.html())
    assert "state was killed" in words(maker.html())


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A campaign without end, and its folder."""
    pytest.importorskip("atheris")
    folder = tmp_path / "out"
    process = subprocess.Popen(
        [*RUN, "--out", str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process, folder
    finally:
        process.kill()
        process.wait()


def wait_for_lines(path: Path, count: int) -> None:
    for _ in range(1200):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} does not grow")


def test_a_killed_campaign_has_a_report_and_the_next_one_goes_on(
    running: tuple[subprocess.Popen[bytes], Path],
) -> None:
    process, folder = running
    wait_for_lines(folder / "progress.jsonl", 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "state was killed" in words(ReportMaker(folder).html())
    with (folder / "progress.jsonl").open("ab") as file:
        file.write(b'{"seconds":')
    again = [*RUN, "--runs", "200", "--out", str(folder)]
    subprocess.run(again, capture_output=True, check=False, timeout=300)
    text = words(ReportMaker(folder).html())
    assert "all runs done, the last of 2 campaigns into this folder" in text


# -- what comes from outside -------------------------------------------------------------------------


def test_hostile_names_and_comments_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    findings = folder / "findings"
    findings.mkdir(parents=True)
    start = START | {"command": pages.HOSTILE, "revision": pages.HOSTILE, "feedback": "<b>"}
    written(folder, {"start": start}, sample(0), {"end": pages.HOSTILE})
    content = (HERE / "bug1.scn").read_text()
    (findings / "<pre><script>\x1b\udc80.scn").write_text(f"# {pages.HOSTILE}\n{content}")
    (findings / "<i>.scn").write_text("version 1\n<script>alert(1)</script>\n")
    text = words(ReportMaker(folder).html())
    assert "EXIT-INFO X3" in text
    assert pages.HOSTILE in text
    assert "<pre><script>\\x1b\\udc80.scn" in text


def test_a_finding_that_cannot_be_read_does_not_hide_the_others(tmp_path: Path) -> None:
    findings = small(tmp_path) / "findings"
    findings.mkdir()
    (findings / "a.scn").write_bytes(b"\x00\xff")
    (findings / "b.scn").write_bytes((HERE / "bug1.scn").read_bytes())
    os.mkfifo(findings / "c.scn")
    text = words(ReportMaker(tmp_path).html())
    assert "a.scn:1: is not text in UTF-8" in text
    assert "EXIT-INFO X3" in text


def test_a_report_that_is_made_again_sees_what_is_new(tmp_path: Path) -> None:
    maker = ReportMaker(small(tmp_path))
    assert "Findings: 0" in words(maker.html())
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "b.scn").write_bytes((HERE / "bug1.scn").read_bytes())
    assert "Findings: 1" in words(maker.html())
    (tmp_path / "findings" / "b.scn").write_bytes((HERE / "fixed.scn").read_bytes() + b"# x\n")
    assert "Findings: 1" in words(maker.html())


def nothing(folder: Path) -> None:
    """Leave the folder out."""
    assert not folder.exists()


def a_file(folder: Path) -> None:
    folder.write_text("")


def no_history(folder: Path) -> None:
    folder.mkdir()


def a_folder(folder: Path) -> None:
    (folder / "progress.jsonl").mkdir(parents=True)


def a_pipe(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / "progress.jsonl")


def garbage(folder: Path) -> None:
    folder.mkdir()
    (folder / "progress.jsonl").write_bytes(b"\x00\n")


def a_loop(folder: Path) -> None:
    folder.mkdir()
    (folder / "progress.jsonl").symlink_to("progress.jsonl")


def unknown_l0(folder: Path) -> None:
    folder.mkdir()
    written(folder, {"start": START | {"l0": "bug999"}})


def test_a_survey_without_time_is_gone_on_with(campaign: Path) -> None:
    survey = Survey()
    folders = campaign / "seeds", campaign / "corpus"
    count = sum(len(list(folder.iterdir())) for folder in folders)
    survey.look("bug1", *folders, seconds=-1)
    assert (survey.left, survey.steps, survey.slowest()) == (count, {}, [])
    survey.look("bug1", *folders)
    assert (survey.left, sum(survey.steps.values())) == (0, count)
    slowest = survey.slowest()
    assert slowest == sorted(slowest, key=lambda kept: -kept.seconds)
    survey.look("bug1", *folders, seconds=-1)
    assert (survey.left, survey.slowest()) == (0, slowest)


@pytest.mark.parametrize(
    ("prepare", "line"),
    [
        (nothing, "does not exist"),
        (a_file, "is not a directory"),
        (no_history, "holds no campaign: there is no progress.jsonl in it"),
        (a_folder, "progress.jsonl: is a directory, not a file"),
        (a_pipe, "progress.jsonl: is a named pipe, not a file"),
        (garbage, "progress.jsonl:1: is not a line of JSON"),
        (a_loop, "holds no campaign"),
        (unknown_l0, "there is no L0 called 'bug999'"),
    ],
)
def test_bad_input_gets_one_line(
    prepare: Callable[[Path], None], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    prepare(folder)
    assert cli.main(["report", str(folder)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert line in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_without_a_library_one_line_says_how_to_get_it(
    library: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from nvmx_fuzz import pages as module

    module._environment.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    assert cli.main(["report", str(small(tmp_path))]) == 2
    expected = f"nvmx-fuzz: {library} is not installed; try: pip install -e '.[report]'\n"
    assert capsys.readouterr().err == expected


# -- plots -------------------------------------------------------------------------------------------


def test_plots_take_their_colours_from_the_page() -> None:
    svg = curve("a plot", [[(0, 0), (1, 5)], [(1, 5), (400, 9)]]) + bars("steps", {3: 1}, "steps")
    for part in (svg.partition("</svg>")[0] + "</svg>", svg.partition("</svg>")[2]):
        ET.fromstring(part)
    assert "var(--curve)" in svg
    assert "var(--ink)" in svg
    assert "#01" not in svg
    assert "minutes" in svg


def test_time_has_the_unit_that_is_easy_to_read() -> None:
    assert [time_unit(seconds)[1] for seconds in (60, 600, 8000, 200_000)] == [
        "seconds", "minutes", "hours", "days",
    ]  # fmt: skip


def test_a_long_history_is_thinned_evenly_and_keeps_its_ends() -> None:
    samples = [Sample(float(n), sample(n), (), ()) for n in range(10_000)]
    few = thinned(samples)
    assert 350 <= len(few) <= 400
    assert (few[0], few[-1]) == (samples[0], samples[-1])
    assert thinned(samples[:100]) == samples[:100]
