"""The parts of the benches that are no measurement: sizes, settings, tables."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from nvmx_fuzz import bench_find, bench_jobs, bench_settings, hunt, power
from nvmx_fuzz.bench_scale import LENGTHS, Row, scenarios_of


@pytest.mark.parametrize("length", LENGTHS)
def test_scenarios_have_exactly_the_length(length: int) -> None:
    found = scenarios_of(length)
    assert {len(scenario.steps) for scenario in found} == {length}
    assert len(set(found)) > len(found) // 2


def test_ratios_are_by_the_first() -> None:
    assert Row("rate", "1/s", (1, 2), (4.0, 6.0)).ratios == (1.0, 1.5)


def test_settings_name_feedbacks_that_there_are() -> None:
    for setting in (*bench_find.SETTINGS, *bench_find.DEEP_SETTINGS):
        core, _, feedback = setting[0].partition(":")
        assert core in ("python", "compiled")
        assert feedback in bench_settings.FEEDBACKS


def usable(settings: tuple[bench_find.Setting, ...]) -> set[str]:
    return {setting[0] for setting in settings if bench_settings.is_usable(setting[0])}


def test_settings_without_a_build_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_settings, "why_not_compiled", lambda: "there is none")
    assert {word.partition(":")[0] for word in usable(bench_find.SETTINGS)} == {"python"}
    assert bench_settings.campaign_setting() == "python:edges"
    monkeypatch.setattr(bench_settings, "why_not_compiled", lambda: "")
    monkeypatch.setattr(bench_settings, "has_branch_counters", lambda: False)
    assert "compiled:transitions" in usable(bench_find.DEEP_SETTINGS)
    assert "compiled:edges" not in usable(bench_find.DEEP_SETTINGS)
    assert bench_settings.campaign_setting() == "compiled:transitions"


def runs(method: str, executions: int, *, found: bool = True) -> list[hunt.Run]:
    return [
        hunt.Run(method, "bug1", seed, 20.0, found, executions, executions / 1000, "")
        for seed in (1, 2, 3)
    ]


def test_power_compares_the_bugs_that_random_finds_late() -> None:
    easy = power.harder_half(runs("nvmx-fuzz", 50) + runs("random", 500))
    assert len(easy) == 2
    hard = power.harder_half(runs("nvmx-fuzz", 500) + runs("random", 20_000))
    assert hard[2] == "| bug1 | 20,000 | 500 | 40.0 |"
    assert hard[-1] == "Median: 40.0 times fewer executions."
    given_up = power.harder_half(runs("nvmx-fuzz", 500) + runs("random", 20_000, found=False))
    assert given_up[2] == "| bug1 | >= 20,000 | 500 | >= 40.0 |"


def test_power_tells_found_from_given_up() -> None:
    row = power.table(runs("nvmx-fuzz", 500) + runs("random", 20_000, found=False))[2]
    assert row == "| bug1 | X3 | 3/3, 0.50 (0.50) s, 500 | 0/3 in 20 s |"
    head, _, first, second = power.summary(
        runs("nvmx-fuzz", 500) + runs("random", 20_000, found=False)
    )
    assert head.startswith("| method | runs |")
    assert (
        first
        == "| nvmx-fuzz | 3 | 20 | 1 | 0 | 0 | 0.50 | 0.5 | 100.0 % | 0.50 | 1,000 | not recorded |"
    )
    assert (
        second
        == "| random | 3 | 20 | 0 | 0 | 1 | 20.00 | 20.0 | 0.0 % | 20.00 | 1,000 | not recorded |"
    )


def test_power_counts_a_run_of_two_records_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    records = [tmp_path / name for name in ("one", "two")]
    for record, executions in zip(records, (500, 700), strict=True):
        lines = (json.dumps(run._asdict()) + "\n" for run in runs("nvmx-fuzz", executions))
        record.write_text("".join(lines))
    page = tmp_path / "page.md"
    page.write_text(f"prose\n\n{power.MARK}\nold\n")
    monkeypatch.setattr(power, "PAGE", page)
    monkeypatch.setattr(power, "PLOT", tmp_path / "plot.svg")
    assert power.main(*map(str, records)) == 0
    assert "| bug1 | X3 | 3/3, 0.70 (0.70) s, 700 |" in page.read_text()


def test_power_refuses_what_is_no_record(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert power.main(str(tmp_path / "none")) == 2
    assert "no such file or directory" in capsys.readouterr().err
    (tmp_path / "other").write_text("{}\n")
    assert power.main(str(tmp_path / "other")) == 2
    assert "is no record of a hunt" in capsys.readouterr().err


def test_the_sooner_of_two_searches_is_the_mean_over_all_pairs() -> None:
    values = [5.0, 1.0, 9.0, 2.0]
    pairs = [min(a, b) for a, b in combinations(values, 2)]
    assert bench_jobs.sooner_of_two(values) == pytest.approx(sum(pairs) / len(pairs))
