"""Each rule that a trace can show: where it speaks, in every spelling, and where it must not."""

import pytest

from nvmx_fuzz.trace.check import Check
from tests.trace.cases import FIRING, SILENT, Case, stay
from tests.trace.writer import FORMS, Form, Trace


def check(content: bytes) -> Check:
    checked = Check()
    checked.feed(content)
    checked.finish()
    assert not checked.unread, content.splitlines()[checked.unread_line - 1]
    return checked


def rules(trace: Trace, form: Form) -> list[str]:
    return [finding.rule for finding in check(trace.render(form)).findings]


TOLD_BY_HISTORY = ("D6", "O2", "O11", "P12", "X1", "X4", "X13")

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@every_form
@pytest.mark.parametrize("case", FIRING, ids=lambda case: f"{case.rule}: {case.name}")
def test_a_broken_rule_is_told_once_wherever_the_spelling_shows_it(case: Case, form: Form) -> None:
    expected = [case.rule] if form.name in case.seen_in else [*case.otherwise]
    assert rules(case.trace(), form) == expected


@every_form
@pytest.mark.parametrize("case", SILENT, ids=lambda case: case.name)
def test_what_a_correct_l0_does_is_no_violation(case: Case, form: Form) -> None:
    assert rules(case.trace(), form) == []


LOSSES = (
    "CPU:2 [LOST 17 EVENTS]",
    "CPU:2 [LOST EVENTS]",
    "CPU:2 [17 EVENTS DROPPED]",
    "CPU:2 [EVENTS DROPPED]",
    "##### CPU 2 buffer started ####",
)

HISTORY = [case for case in FIRING if case.rule in ("X13", "D6", "O2", "O11", "P12")]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("case", HISTORY, ids=lambda case: f"{case.rule}: {case.name}")
def test_lost_events_silence_every_rule_that_needs_history(case: Case, loss: str) -> None:
    """Wherever events are missing inside the situation, nothing is concluded across the gap."""
    form = FORMS["6.13"]
    trace = case.trace()
    silent = 0
    for position in range(len(stay().events), len(trace.events)):
        holed = case.trace()
        gap = Trace().line(loss).events
        holed.events[position:position] = gap
        del holed.events[position - 1]
        found = [f.rule for f in check(holed.render(form)).findings]
        assert set(found) <= {case.rule}, (position, found)
        silent += not found
    assert silent or case.name in ("injected twice", "exception twice")


@every_form
@pytest.mark.parametrize("case", SILENT, ids=lambda case: case.name)
def test_a_clipped_start_of_a_healthy_trace_is_silent(case: Case, form: Form) -> None:
    events = case.trace().events
    for first in range(len(events)):
        clipped = Trace()
        clipped.events = events[first:]
        assert rules(clipped, form) == []


def test_a_hole_in_a_healthy_trace_is_silent() -> None:
    loss = LOSSES[0]
    for case in SILENT:
        events = case.trace().events
        for first in range(len(events)):
            for length in (1, 2, 3):
                holed = Trace()
                holed.events = [
                    *events[:first],
                    *Trace().line(loss).events,
                    *events[first + length :],
                ]
                assert rules(holed, FORMS["6.1"]) == [], (case.name, first, length)


def test_two_vcpus_on_wandering_cpus_are_told_apart() -> None:
    """Interleaved event by event, each vCPU gets the verdict that it has alone."""
    bad, good = FIRING[0].trace(), SILENT[0].trace()
    both = Trace()
    for number in range(max(len(bad.events), len(good.events))):
        for source, pid, vcpu in ((bad, 1, 0), (good, 2, 1)):
            if number < len(source.events):
                kind, _pid, _task, _cpu, fields = source.events[number]
                fields = fields | {"vcpu": vcpu, **({"apic": vcpu} if kind == "arrival" else {})}
                both.events.append((kind, pid, f"CPU {vcpu}/KVM", number % 4, fields))
    for form in FORMS.values():
        checked = check(both.render(form))
        assert [(f.rule, f.pid) for f in checked.findings] == [("X3", 1)]
        verdicts = {vcpu.pid: vcpu.findings for vcpu in checked.vcpus.values()}
        assert verdicts.get(1, 1) == 1
        assert verdicts.get(2, 0) == 0


def test_each_rule_has_a_firing_case() -> None:
    told = {case.rule for case in FIRING}
    assert told == {
        *(f"E{number}" for number in range(1, 7)),
        *TOLD_BY_HISTORY,
        "X2",
        "X3",
        "X6",
        "K1",
    }
