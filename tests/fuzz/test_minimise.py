"""Minimising a scenario, and the command around it."""

import json
from pathlib import Path

import pytest

from nvmx_core.scenario.config import DEFAULT_FLAGS
from nvmx_core.scenario.steps import ENTER, INTERRUPT, NMI, RUN, Scenario, Step, canonical
from nvmx_core.scenario.text import format_scenario, parse_scenario
from nvmx_fuzz.cli import main
from nvmx_fuzz.generate import random_scenario
from nvmx_fuzz.minimise import Size, minimise, size_of

DEFAULT = (DEFAULT_FLAGS, 0, 0, 0)
PAIR: tuple[Step, Step] = (canonical(NMI, 0, 0, 0), canonical(INTERRUPT, 0, 0x40, 0))
NOISE: Step = canonical(RUN, 1, 0, 0)

BUG1 = """version 1
L1 inject external-interrupt 0x40
L0 drop-page stack
L2 page data absent
outside interrupt 0x51 in-delivery
L1 intercept #GP on
L1 enter
L2 nop
L2 nop
"""


def both_or_none(scenario: Scenario) -> bool:
    """Two steps that only go together, and a third that stays."""
    return ENTER in [step[0] for step in scenario.steps] and len(
        {step[0] for step in scenario.steps} & {NMI, INTERRUPT}
    ) in (0, 2)


def test_steps_that_only_go_together_go_together() -> None:
    scenario = Scenario(DEFAULT, (PAIR[0], NOISE, (ENTER, 0, 0, 0), NOISE, PAIR[1]))
    assert minimise(scenario, both_or_none).steps == ((ENTER, 0, 0, 0),)


def test_result_is_never_larger_and_the_same_each_time() -> None:
    for seed in range(20):
        scenario = random_scenario(seed)
        wanted = scenario.steps[len(scenario.steps) // 2][0] if scenario.steps else 0
        sizes: list[Size] = []

        def holds(candidate: Scenario, wanted: int = wanted) -> bool:
            return wanted in [step[0] for step in candidate.steps]

        if not holds(scenario):
            continue

        def improved(smaller: Scenario, seen: list[Size] = sizes) -> None:
            seen.append(size_of(smaller))

        small = minimise(scenario, holds, improved)
        assert sizes == sorted(sizes, reverse=True)
        assert size_of(small) <= size_of(scenario)
        assert len(small.steps) == 1
        assert minimise(scenario, holds) == small
        assert minimise(small, holds) == small


def test_command_keeps_the_rule_and_writes_the_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "raw.scn"
    source.write_text(BUG1)
    assert main(["minimize", "--l0", "bug1", "--rule", "X3", str(source)]) == 0
    assert "8 steps became" in capsys.readouterr().out
    result = tmp_path / "raw.min.scn"
    small = parse_scenario(result.read_text()).scenario
    assert len(small.steps) <= 4
    assert main(["replay", "--l0", "bug1", "--json", str(result)]) == 1
    rules = [entry["rule"] for entry in json.loads(capsys.readouterr().out)[0]["violations"]]
    assert "X3" in rules


def test_command_goes_on_from_what_is_there(tmp_path: Path) -> None:
    source, out = tmp_path / "raw.scn", tmp_path / "out.scn"
    source.write_text(BUG1)
    command = ["minimize", "--l0", "bug1", "--rule", "X3", "--out", str(out), str(source)]
    assert main(command) == 0
    small = out.read_text()
    assert main(command) == 0
    assert out.read_text() == small
    # A run that was cut off leaves one of the scenarios on the way.
    file = parse_scenario(small)
    steps = (*file.scenario.steps, NOISE)
    out.write_text(format_scenario(file.scenario._replace(steps=steps), file.comments))
    assert main(command) == 0
    assert out.read_text() == small


@pytest.mark.parametrize(
    "content",
    [
        b"hello world\n",
        b"# precious\nversion 1\nL1 enter\n",
        BUG1.encode(),
        BUG1.replace("version", "# key: EXIT-INFO X3 of another L0\nversion").encode(),
        bytes(3),
        b"",
    ],
)
def test_command_leaves_alone_what_is_not_its_own(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "raw.scn", tmp_path / "out"
    source.write_text(BUG1)
    out.write_bytes(content)
    assert main(["minimize", "--l0", "bug1", "--out", str(out), str(source)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"nvmx-fuzz: {out}: holds something else, and is left alone")
    assert error.count("\n") == 1
    assert out.read_bytes() == content


def test_command_leaves_alone_what_it_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, link = tmp_path / "raw.scn", tmp_path / "link.scn"
    source.write_text(f"# as it came\n{BUG1}")
    link.symlink_to(source)
    for out in (source, link):
        assert main(["minimize", "--l0", "bug1", "--out", str(out), str(source)]) == 2
        assert "holds something else" in capsys.readouterr().err
    assert source.read_text() == f"# as it came\n{BUG1}"


def test_command_knows_the_result_of_another_bug_by_its_l0(tmp_path: Path) -> None:
    source, out = tmp_path / "raw.scn", tmp_path / "out.scn"
    source.write_text(BUG1)
    command = ["minimize", "--rule", "X3", "--out", str(out), str(source), "--l0"]
    assert main([*command, "bug1"]) == 0
    kept = out.read_text()
    assert main([*command, "bug2"]) == 2
    assert out.read_text() == kept


def test_command_names_a_rule_that_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "raw.scn"
    source.write_text(BUG1)
    assert main(["minimize", "--l0", "bug1", "--rule", "ZZ", str(source)]) == 2
    assert capsys.readouterr().err.startswith("nvmx-fuzz: there is no rule 'ZZ'")
    assert main(["minimize", "--l0", "bug1", "--rule", "K1", str(source)]) == 2
    assert "violates nothing on bug1 of rule K1" in capsys.readouterr().err


def test_command_refuses_what_violates_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "fine.scn"
    source.write_text("version 1\nL1 enter\n")
    assert main(["minimize", str(source)]) == 2
    assert capsys.readouterr().err == f"nvmx-fuzz: {source}: violates nothing on fixed\n"
    assert not (tmp_path / "fine.min.scn").exists()
