"""The text form: one canonical line a step, errors with line numbers, expectations."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nvmx_core.arch.events import NMI_INFO, VALID
from nvmx_core.arch.fields import POISON
from nvmx_core.journal import DELIVER, END, EXIT, L1_ENTRY, RECORD_FIELDS, RETIRE
from nvmx_core.machines.bare import Bare
from nvmx_core.scenario.config import DEFAULT_FLAGS, FLAG_BIT, config_for
from nvmx_core.scenario.expect import (
    FIELD_SLUGS,
    KIND_NAMES,
    NOTHING,
    Expectation,
    format_expectation,
    parse_expectation,
    show_field,
)
from nvmx_core.scenario.step_text import format_step, parse_step
from nvmx_core.scenario.steps import OPERATIONS, Scenario, Step
from nvmx_core.scenario.text import (
    STEPS_MAX,
    ScenarioFile,
    check_expectations,
    format_file,
    format_scenario,
    parse_scenario,
)
from nvmx_core.scenario.words import ScenarioError, nearest
from nvmx_fuzz.strategies import configs, scenarios, steps

CANONICAL = """\
# An interrupt arrives for L1 while L0 repairs a page: X3

version 1
config l1-ept=off exceptions=#PF,#GP pf-filter=writes
L1       inject external-interrupt 0x40
L0       drop-page stack
outside  interrupt 0x51 in-delivery
L1       enter no-reinject no-eoi
  expect deliver 0x40 return-rip=code
  expect exit EXTERNAL_INTERRUPT idt-vectoring=invalid rip=handler:0x40
L2       hlt
  expect nothing
  expect end l1
"""

EXAMPLES = (
    "L1 enter no-reinject no-eoi",
    "L1 inject hardware-exception #PF error=0x2",
    "L1 inject software-interrupt 0x80 length=2",
    "L1 inject nmi",
    "L1 inject nmi 0x3",
    "L1 inject other-event",
    "L1 vmwrite GUEST_ACTIVITY 0x1",
    "L1 control nmi-window-exiting on",
    "L1 intercept #GP on",
    "L1 ept stack misconfigured",
    "L1 vmptrld 0",
    "L2 hlt",
    "L2 int 0x80",
    "L2 page gdt absent",
    "L2 gate 0x40 task",
    "outside timer 1000 at-entry",
    "L0 save-restore in-delivery",
)


def parse(*lines: str) -> ScenarioFile:
    return parse_scenario("\n".join(("version 1", *lines)))


# -- round trips ----------------------------------------------------------------------------------


@given(scenarios())
def test_a_scenario_survives_the_way_to_text_and_back(scenario: Scenario) -> None:
    text = format_scenario(scenario, ["what it is"])
    file = parse_scenario(text)
    assert file.scenario == scenario
    assert format_file(file) == text


@given(configs(any_combination=True))
def test_every_configuration_has_a_text(config: tuple[int, int, int, int]) -> None:
    text = format_scenario(Scenario(config, ()))
    assert parse_scenario(text).scenario.config == config
    assert max(len(line) for line in text.splitlines()) <= 100


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"))))
def test_leading_comments_survive(comments: list[str]) -> None:
    text = format_scenario(Scenario((DEFAULT_FLAGS, 0, 0, 0), ()), comments)
    assert format_file(parse_scenario(text)) == text


@given(steps())
def test_a_step_has_one_line(step: Step) -> None:
    line = format_step(step)
    assert parse_step(line.split()) == step
    assert line.split() == format_step(step, compact=True).split()


@pytest.mark.parametrize("line", EXAMPLES)
def test_a_line_as_people_write_it_is_canonical(line: str) -> None:
    assert format_step(parse_step(line.split()), compact=True) == line


@pytest.mark.parametrize("op", range(len(OPERATIONS)), ids=lambda op: OPERATIONS[op].name)
def test_every_operation_has_a_line_for_zero_operands(op: int) -> None:
    assert parse_step(format_step((op, 0, 0, 0)).split()) == (op, 0, 0, 0)


def test_a_file_in_canonical_form_stays_as_it_is() -> None:
    text = CANONICAL.replace("\n\n", "\n")
    assert format_file(parse_scenario(text)) == text


def test_spacing_line_ends_and_spellings_do_not_matter() -> None:
    loose = "version 1\r\n\r\n  L2   run hlt   # sleeps\r\nL1 enter no-eoi no-reinject #\r\n"
    strict = parse("L2 hlt", "L1 enter no-reinject no-eoi")
    assert parse_scenario(loose).scenario == strict.scenario


def test_a_mnemonic_is_no_comment_but_a_hash_between_blanks_is() -> None:
    (step,) = parse(
        "L1 inject hardware-exception #PF # page fault, #GP is not meant"
    ).scenario.steps
    assert format_step(step, compact=True) == "L1 inject hardware-exception #PF"


def test_configuration_words_change_only_what_they_name() -> None:
    config = parse("config single-step=on", "config l0-exceptions=#UD pf-filter=2").scenario.config
    assert config == (DEFAULT_FLAGS | FLAG_BIT["single-step"], 0, 16, 2)


def error_of(text: str) -> ScenarioError | None:
    """Return the error that a text gives, if any; let any other exception through."""
    try:
        parse_scenario(text)
    except ScenarioError as error:
        return error
    return None


# -- errors ---------------------------------------------------------------------------------------


@given(st.text())
@example("version 1\nL1 inject \ud800")
@example("version 1\nL1 vmwrite PIN_BASED " + "9" * 5000)
@example("version 1\nL1 vmwrite PIN_BASED \u0663")
@example("version \u00b2")
@example("version 1\nexpect")
def test_any_text_is_a_scenario_or_a_scenario_error(text: str) -> None:
    error = error_of(text)
    if error is not None:
        assert 1 <= error.line <= text.count("\n") + 1
        assert "\n" not in error.message


KNOWN_WORDS = (
    "L1 L2 L0 outside config expect version 1 inject enter run hlt page stack absent #PF 0x40 "
    "exit deliver end rip=code rip= =1 error=0x2 error= vector idt-vectoring=nmi # #x handler:1 , "
    "nothing no-exit no- no-nothing external-interrupt exceptions=#PF, l1-ept=maybe 99999"
)
WORDS = st.sampled_from(KNOWN_WORDS.split())


@given(st.lists(st.lists(WORDS, max_size=6).map(" ".join), max_size=8))
def test_texts_of_known_words_are_scenarios_or_scenario_errors(lines: list[str]) -> None:
    error = error_of("\n".join(("version 1", *lines)))
    if error is not None:
        assert error.line >= 2
        return
    file = parse(*lines)
    again = parse_scenario(format_file(file))
    assert again.scenario == file.scenario
    assert format_file(again) == format_file(file)


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        ((), 1, ""),
        (("version 2",), 1, "version 2 was made by a newer nvmx-fuzz"),
        (("# a comment", "L1 enter"), 2, "must be 'version 1', found 'L1 enter'"),
        (("version 1", "L3 enter"), 2, "no actor 'L3'; did you mean"),
        (("version 1", "L1 entr"), 2, "no step of L1 'entr'; did you mean enter?"),
        (("version 1", "", "L2 htl"), 3, "did you mean hlt?"),
        (("version 1", "L1"), 2, "what does L1 do?"),
        (("version 1", "L0 drop-page stak"), 2, "no page 'stak'; did you mean stack?"),
        (("version 1", "L1 vmwrite GUEST_ACTIVTY 1"), 2, "did you mean GUEST_ACTIVITY?"),
        (("version 1", "L1 inject external-interrupt 0x100"), 2, "the largest is 0xff"),
        (
            ("version 1", "L1 vmwrite ENTRY_INTR_INFO 0x180000202"),
            2,
            "value of ENTRY_INTR_INFO '0x180000202' is too large; the largest is 0xffffffff",
        ),
        (("version 1", "L1 inject external-interrupt"), 2, "the vector is missing"),
        (
            ("version 1", "L1 inject nmi eror=1"),
            2,
            "no operand of inject 'eror'; did you mean error",
        ),
        (("version 1", "L1 inject nmi error=1 error=1"), 2, "error is given twice"),
        (("version 1", "L1 eoi now"), 2, "unexpected 'now' after L1 eoi"),
        (("version 1", "L1 enter no-eol"), 2, "did you mean no-eoi"),
        (("version 1", "config l2-ept=on"), 2, "did you mean l0-ept or l1-ept?"),
        (("version 1", "config l1-ept=maybe"), 2, "l1-ept is on or off, found 'maybe'"),
        (("version 1", "config l1-ept=on l1-ept=on"), 2, "l1-ept is given twice"),
        (("version 1", "config exceptions=#MC"), 2, "no choice of exception '#MC'"),
        (("version 1", "L1 enter", "config l1-ept=off"), 3, "before the first step"),
        (("version 1", "expect exit"), 2, "expect needs a step above it"),
        (("version 1", "L1 enter", "expect"), 3, "expect what?"),
        (("version 1", "L1 enter", "expect exot"), 3, "did you mean exit?"),
        (("version 1", "L1 enter", "expect exit HLD"), 3, "did you mean HLT?"),
        (("version 1", "L1 enter", "expect exit HLT rp=1"), 3, "did you mean rip or rsp?"),
        (("version 1", "L1 enter", "expect exit HLT 5"), 3, "not of the form field=value"),
        (("version 1", "L1 enter", "expect no-exit HLT"), 3, "nothing may follow no-exit"),
        (("version 1", "expect end", "L1 enter"), 3, "no step may follow 'expect end'"),
        (("version 1", "L1 " + "x" * 9999), 2, "x..."),
    ],
)
def test_an_error_names_the_line_and_helps(lines: tuple[str, ...], line: int, message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("\n".join(lines))
    assert caught.value.line == line
    assert message in caught.value.message
    assert len(caught.value.message) < 300
    assert str(caught.value) == f"line {line}: {caught.value.message}"


def test_too_many_steps_are_refused() -> None:
    parse(*["L1 enter"] * STEPS_MAX)
    with pytest.raises(ScenarioError, match=f"at most {STEPS_MAX} steps"):
        parse(*["L1 enter"] * (STEPS_MAX + 1))


def test_nearest_names_come_best_first() -> None:
    assert nearest("stck", ["code", "stack", "data"]) == ["stack"]
    assert nearest("HTL", ["hlt", "rsm"]) == ["hlt"]
    assert nearest("x" * 1000, ["x"]) == []


# -- expectations ---------------------------------------------------------------------------------


def failures(text: str) -> list[str]:
    file = parse_scenario(text)
    machine = Bare(config_for(file.scenario.config))
    machine.run(file.scenario)
    return check_expectations(file, machine.journal, machine.step_starts)


def test_expectations_that_hold_say_nothing() -> None:
    assert failures(CANONICAL) == []


def test_expectations_belong_to_the_step_above_them() -> None:
    file = parse("L1 enter", "L2 hlt", "  expect exit", "  expect retire", "expect end")
    assert [step for step, _expectation in file.expects] == [1, 1, 2]


@pytest.mark.parametrize(
    ("old", "new", "seen"),
    [
        ("EXTERNAL_INTERRUPT idt", "HLT idt", "expected exit HLT idt-vectoring=invalid"),
        ("rip=handler:0x40", "rip=code+0x2", "saw exit EXTERNAL_INTERRUPT rip=handler:0x40"),
        ("deliver 0x40", "deliver 0x41", "line 9: L1 enter no-reinject no-eoi: expected deliver"),
        ("expect nothing", "expect retire", "line 12: L2 hlt: expected retire; saw nothing"),
        ("expect end l1", "expect end l2", "line 13: expected end l2; saw end l1"),
        ("expect deliver 0x40", "expect no-deliver\n  expect deliver 0x40", "saw deliver 0x40"),
        ("expect deliver 0x40", "expect nothing\n  expect deliver 0x40", "expected nothing; saw"),
    ],
)
def test_an_expectation_that_fails_says_where_and_what_was_seen(
    old: str, new: str, seen: str
) -> None:
    (sentence,) = failures(CANONICAL.replace(old, new))
    assert seen in sentence


def test_expectations_of_a_step_are_matched_in_order() -> None:
    file = parse("L1 enter", "  expect deliver 0x40", "  expect deliver 0x51")
    first, second = (DELIVER, 0x40, POISON, 0, 0, 0, 0), (DELIVER, 0x51, POISON, 0, 0, 0, 0)
    assert check_expectations(file, [first, second], [0, 2]) == []
    assert len(check_expectations(file, [second, first], [0, 2])) == 2


def test_a_run_that_stopped_early_is_reported() -> None:
    file = parse("L1 enter", "L2 hlt", "  expect exit HLT")
    assert check_expectations(file, [], [0]) == ["line 4: the run stopped before step 2"]


def test_an_invalid_word_is_invalid_whatever_its_other_bits_are() -> None:
    file = parse("L1 enter", "  expect entry invalid")
    assert check_expectations(file, [(L1_ENTRY, 0x40, 0, 0)], [0, 1]) == []
    (sentence,) = check_expectations(file, [(L1_ENTRY, VALID | 0x40, 0, 0)], [0, 1])
    assert "saw entry external-interrupt:0x40" in sentence


@pytest.mark.parametrize(
    ("words", "kind", "index", "value"),
    [
        ("exit HLT", EXIT, 0, 12),
        ("exit INVALID_STATE", EXIT, 0, 1 << 31 | 33),
        ("exit idt-vectoring=nmi", EXIT, 4, NMI_INFO),
        ("exit IDT-vectoring-info=hardware-exception:#PF", EXIT, 4, VALID | 0xB0E),
        ("exit interruption=hardware-exception:#PF+no-error-code", EXIT, 2, VALID | 0x30E),
        ("exit interruption=nmi+nmi-unblocking", EXIT, 2, NMI_INFO | 1 << 12),
        ("exit instruction-length=undefined", EXIT, 6, POISON),
        ("exit interruptibility=sti,nmi", EXIT, 13, 9),
        ("exit activity=hlt", EXIT, 14, 1),
        ("exit guest-physical-address=stack", EXIT, 8, 0x14000),
        ("retire code+0x2", RETIRE, 0, 0x16002),
        ("retire handler:#PF+0x1", RETIRE, 0, 0x170E1),
        ("end irr=0x40,0x51", END, 1, 1 << 0x40 | 1 << 0x51),
        ("end isr=none", END, 2, 0),
    ],
)
def test_values_have_names(words: str, kind: int, index: int, value: int) -> None:
    assert parse_expectation(1, words.split()) == Expectation(1, kind, fields=((index, value),))


@st.composite
def expectations(draw: st.DrawFn) -> Expectation:
    kind = draw(st.sampled_from([NOTHING, *RECORD_FIELDS]))
    if kind == NOTHING or draw(st.booleans()):
        return Expectation(1, kind, absent=kind != NOTHING)
    small = st.one_of(st.just(POISON), st.integers(0, 255))
    events = st.integers(1 << 31, (1 << 31) + 0x1FFF)
    values = st.one_of(small, events, st.integers(0x10000, 0x18000))
    fields = [
        (index, draw(small if slug == "vector" else values))
        for index, slug in enumerate(FIELD_SLUGS[kind])
        if draw(st.booleans())
    ]
    return Expectation(1, kind, fields=tuple(fields))


@given(expectations())
def test_what_is_written_of_an_expectation_reads_back(expectation: Expectation) -> None:
    again = parse_expectation(1, format_expectation(expectation).split())
    assert format_expectation(again) == format_expectation(expectation)
    for (index, value), (_index, given_value) in zip(again.fields, expectation.fields, strict=True):
        assert value == given_value or show_field(expectation.kind, index, value) == "invalid"


def test_every_field_of_every_record_can_be_written_and_shown() -> None:
    for kind, names in RECORD_FIELDS.items():
        assert len(set(FIELD_SLUGS[kind])) == len(names)
        for index, slug in enumerate(FIELD_SLUGS[kind]):
            words = [KIND_NAMES[kind], f"{slug}={show_field(kind, index, 1)}"]
            ((found, _value),) = parse_expectation(1, words).fields
            assert found == index


def test_a_message_stays_short_whatever_the_word() -> None:
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("version 1\nL1 inject " + "\N{GRINNING FACE}" * 90)
    assert "'\\U0001f600\\U0001f600\\U0001f600\\U0001f600...'" in caught.value.message
    with pytest.raises(ScenarioError) as caught:
        parse_scenario("version 1\nL1 inject " + "a" * 90)
    assert f"'{'a' * 40}...'" in caught.value.message
