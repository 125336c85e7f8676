"""The score by mutants, without Cosmic Ray: verdicts, tables, and who sees what."""

import contextlib
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nvmx_core.bugs.catalogue import CATALOGUE
from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario import text
from nvmx_fuzz import bench_settings, entry_checks, journals, mutation_check, mutation_score
from nvmx_fuzz.codec import encode
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.mutation_score import VERDICTS, Mutant, Verdicts, page
from nvmx_fuzz.scenario_files import load


def mutant(
    who: str, old: str = "a and b", module: str = "l0/routing.py", function: str = "reflect"
) -> Mutant:
    return Mutant(module, function, old, "a or b", who, "")


def test_a_verdict_is_by_the_whole_key_or_by_a_pattern() -> None:
    known = Verdicts(
        "# why\n\nl0/routing.py reflect: a and b -> a or b => missing: a seed\n/^cpu/ => equivalent: so\n"
    )
    assert known.of(mutant("nobody")) == "missing: a seed"
    assert known.of(mutant("nobody", module="cpu/apic.py")) == "equivalent: so"
    assert known.of(mutant("nobody", old="c")) == ""
    assert known.of(mutant("nobody", function="emulate")) == ""
    assert known.of(mutant("nobody", function="")) == ""
    assert not known.is_equivalent(mutant("nobody"))
    assert known.is_equivalent(mutant("nobody", module="cpu/apic.py"))
    assert not known.is_equivalent(mutant("oracles", module="cpu/apic.py"))


def test_a_line_without_a_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="no verdict"):
        Verdicts("l0/routing.py: a -> b\n")


def test_the_score_leaves_out_what_is_equivalent() -> None:
    found = [
        mutant("oracles"),
        mutant("campaign"),
        mutant("journals"),
        mutant("tests only"),
        mutant("nobody", old="c | d"),
    ]
    text = page(
        found, Verdicts("l0/routing.py reflect: c | d -> a or b => equivalent: no difference\n")
    )
    assert "| all | 5 | 1 | 0 | 0 | 0 | 0 | 1 | 1 | 1 | 1 | 1 | 50.0 % | 75.0 % |" in text
    assert "| l0/routing.py reflect: `a and b` becomes `a or b` | see it | none yet |" in text
    assert (
        "| l0/routing.py reflect: `c \\| d` becomes `a or b` | - | equivalent: no difference |"
        in text
    )


def test_nobody_sees_anything_in_the_tree_as_it_is() -> None:
    assert mutation_check.corpus_sees() == ""
    assert mutation_check.generator_sees() == ""
    assert mutation_check.seeds_see() == ""
    assert mutation_check.entry_checks_see() == ""
    assert mutation_check.catalogue_sees() == ""
    assert mutation_check.judged() == ""


def test_an_oracle_that_finds_a_known_bug_no_more_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        journals, "run_and_judge", lambda *words: run_and_judge(*words)._replace(violations=())
    )
    assert mutation_check.catalogue_sees() == f"bugs: {CATALOGUE[0].name} is found no more"


def test_what_the_unchanged_model_shows_too_is_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(load(str(ROOT / "corpus" / "bugs" / "bug1.scn")).scenario).hex()
    found = {"found": True, "executions": 7, "data": data}
    monkeypatch.setattr(bench_settings, "search", lambda *_: found)
    seen = f"campaign: after 7 executions, {data}"
    assert mutation_check.campaign_sees("none") == seen
    assert mutation_check.campaign_sees("none", str(ROOT)) == seen
    monkeypatch.setattr(mutation_check, "_REPLAY", "raise SystemExit(1)")
    assert mutation_check.campaign_sees("none", str(ROOT)) == ""


def test_a_change_in_the_last_line_of_a_file_has_both_lines(tmp_path: Path) -> None:
    spec = SimpleNamespace(module_path="nvmx_core/cpu/boundary.py", start_pos=(4, 8))
    (tmp_path / "nvmx_core" / "cpu").mkdir(parents=True)
    lines = (
        "class A:\n    def before(self):\n        pass\n    def asked(self):\n        return True\n"
    )
    (tmp_path / spec.module_path).write_text(lines)
    diff = "--- a\n+++ b\n@@ -1,2 +1,2 @@\n-    return True\n-\n+    return False\n+\n"
    item, result = SimpleNamespace(mutations=(spec,)), SimpleNamespace(diff=diff, output="nobody\n")
    found = mutation_score._mutant(item, result, tmp_path)
    assert found.key == "cpu/boundary.py asked: return True -> return False"
    spec.start_pos = (1, 0)
    found = mutation_score._mutant(item, result, tmp_path)
    assert found.key == "cpu/boundary.py: return True -> return False"


def test_a_mutant_that_raises_is_seen() -> None:
    def raises() -> str:
        raise ZeroDivisionError("by a mutant")

    assert mutation_check.guarded(raises) == "oracles: ZeroDivisionError by a mutant"


def test_the_check_says_who_saw_it() -> None:
    code = (
        "import nvmx_core.l0.kvm, sys\n"
        "from nvmx_core.bugs.versions import l0_class\n"
        "import nvmx_core.oracle.judge as judge\n"
        "judge.run_and_judge.__defaults__ = (l0_class('bug3'),)\n"
        "from nvmx_fuzz import mutation_check\n"
        "sys.exit(mutation_check.main('none'))\n"
    )
    finished = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, check=False, text=True
    )
    assert finished.returncode == 1
    assert finished.stdout.startswith("oracles: ")


def test_the_file_of_verdicts_can_be_read() -> None:
    known = Verdicts(VERDICTS.read_text())
    assert known.of(mutant("nobody", old="x", module="l0/log.py")) == ""
    line = "self._write_entry(NMI_INFO, POISON, 0)"
    found = Mutant("l0/injection.py", "reinject", line, line.replace("0)", "-1)"), "nobody", "")
    assert known.is_equivalent(found)


@pytest.mark.parametrize(
    ("module", "line", "equivalent", "visible"),
    [
        ("l0/injection.py", "self.own_mtf = False", "take_back_injection", "enter_smm"),
        (
            "l0/vcpu.py",
            "self.request_event = True",
            "must_ask_userspace",
            "queue_userspace_interrupt",
        ),
    ],
)
def test_the_same_line_in_another_function_is_another_question(
    module: str, line: str, equivalent: str, visible: str
) -> None:
    known = Verdicts(VERDICTS.read_text())
    flip = {"False": "True", "True": "False"}
    old, _, value = line.rpartition(" ")
    new = f"{old} {flip[value]}"
    assert known.is_equivalent(Mutant(module, equivalent, line, new, "nobody", ""))
    assert not known.is_equivalent(Mutant(module, visible, line, new, "nobody", ""))


def test_the_mutant_of_a_tree_is_named_as_cosmic_ray_names_it(tmp_path: Path) -> None:
    for part in mutation_score.MODULES:
        shutil.copytree(ROOT / part, tmp_path / part)
    assert mutation_score.mutant_between(ROOT, tmp_path) is None
    assert not is_called_equivalent(tmp_path)
    module = tmp_path / "nvmx_core/l0/injection.py"
    line = "self._write_entry(NMI_INFO, POISON, 0)"
    module.write_text(module.read_text().replace(line, line.replace("0)", "-1)"), 1))
    found = mutation_score.mutant_between(ROOT, tmp_path)
    assert found is not None
    assert found.key == f"l0/injection.py reinject: {line} -> {line.replace('0)', '-1)')}"
    assert is_called_equivalent(tmp_path)


def is_called_equivalent(tree: Path) -> bool:
    with contextlib.chdir(tree):
        return mutation_check.is_called_equivalent(str(ROOT))


def test_a_bug_that_shows_something_else_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    known = journals.recorded()
    name = f"catalogue/{CATALOGUE[3].name}"
    monkeypatch.setattr(journals, "recorded", lambda: known | {name: "0"})
    assert mutation_check.catalogue_sees() == f"journals: {name}"


def test_what_is_judged_wrong_comes_before_what_is_only_not_as_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = journals.recorded()
    monkeypatch.setattr(journals, "recorded", lambda: dict.fromkeys(known, "0"))
    assert mutation_check.judged().startswith("journals: ")

    def disagrees(_scenario: object) -> None:
        raise entry_checks.Disagreement("by a mutant")

    monkeypatch.setattr(entry_checks, "check_entry", disagrees)
    assert mutation_check.judged().startswith("entry checks: ")
    monkeypatch.setattr(text, "check_expectations", lambda *_: ["by a mutant"])
    assert mutation_check.judged().startswith("seeds: ")


def test_bochs_judges_what_changed_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("keystone", reason="the extra bochs is not installed")
    from nvmx_fuzz import comparing

    known = journals.recorded()
    assert mutation_check.bochs_sees() == ""
    monkeypatch.setattr(journals, "recorded", lambda: known | {"bugs/bug1.scn": "0"})
    assert mutation_check.bochs_sees() == ""
    listed = "nested_events/failed-entry-leaves-exit-information.scn"
    monkeypatch.setattr(journals, "recorded", lambda: known | {listed: "0"})
    assert mutation_check.bochs_sees() == ""
    monkeypatch.setattr(comparing, "divergence_of", lambda _outcome: None)
    assert mutation_check.bochs_sees() == f"bochs: {listed}"
