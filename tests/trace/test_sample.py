"""A real trace, of Linux 6.1 on the Bochs CPU, healthy; and the same with one line changed.

`kvm-6.1.txt` is what the kernel printed for two small guests that each run L2 with an injection, shortened to
the events around L2. In the second an interrupt for L1 is pending when L1 enters.
"""

from pathlib import Path

import pytest

from nvmx_fuzz.trace.check import Check

SAMPLE = (Path(__file__).parent / "kvm-6.1.txt").read_bytes()

# What is changed: a part of a line, in which of the lines that hold it (from 1), by what; then rule and line.
PLANTED = [
    ("reason: EXTERNAL_INTERRUPT ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000000000000", 1,
     "reason: EXTERNAL_INTERRUPT ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000080000040", "X3"),
    ("reason: VMCALL ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000000000000", 1,
     "reason: VMCALL ext_inf1: 0x0000000000000000 ext_inf2: 0x0000000080000040", "X1"),
    ("reason: EXTERNAL_INTERRUPT", 1, "reason: TRIPLE_FAULT", "X6"),
    ("ext_int: 0x80000051", 1, "ext_int: 0x80000351", "K1"),
    ("intr_info 0x800000fd", 1, "intr_info 0x000000fd", "K1"),
    ("intr_info 0x800000fd", 1, "intr_info 0x800003fd", "K1"),
    ("rip 0xb00400 info1 0x0000000000000184 info2 0x0000000000000000 intr_info 0x00000000", 1,
     "rip 0xb00400 info1 0x0000000000000184 info2 0x0000000000000000 intr_info 0x80000b0e", "X6"),
    ("IRQ 0x40 [reinjected]", 2, "IRQ 0x41 [reinjected]", "X4"),
    ("IRQ 0x40 [reinjected]", 3, "Soft/INTn 0x40 [reinjected]", "X4"),
    ("IRQ 0x40 [reinjected]", 1, "IRQ 0x52", "X13"),
    ("IRQ 0x40 [reinjected]", 4, "IRQ 0x52", "X13"),
    ("info1 0x0000000000000182 info2 0x0000000080000040", 1,
     "info1 0x0000000000000182 info2 0x0000000080000140", "X4"),
    ("event_inj: 0x80000040", 1, "event_inj: 0x80000140", "E1"),
]  # fmt: skip


def check(content: bytes, chunk_size: int = 1 << 20) -> Check:
    checked = Check()
    for start in range(0, len(content), chunk_size):
        checked.feed(content[start : start + chunk_size])
    checked.finish()
    return checked


def test_the_healthy_trace_breaks_no_rule() -> None:
    checked = check(SAMPLE)
    assert checked.findings == []
    assert checked.unread == 0
    assert [(v.exits > 10, v.nested_entries, v.nested_exits) for v in checked.vcpus.values()] == [
        (True, 2, 2),
        (True, 3, 3),
    ]


def test_every_line_left_out_alone_changes_no_verdict_but_where_it_says_so() -> None:
    """A missing re-injection is a finding. Nothing else is: no rule takes for granted what it did not see."""
    lines = SAMPLE.splitlines(keepends=True)
    for number, line in enumerate(lines):
        checked = check(b"".join(lines[:number] + lines[number + 1 :]))
        found = {finding.rule for finding in checked.findings}
        expected = {"X13"} if b"[reinjected]" in line and number_of_first(lines, number) else set()
        assert found == expected, (number + 1, line)


def number_of_first(lines: list[bytes], number: int) -> bool:
    """Whether the line injects an event again whose delivery an exit interrupted."""
    before = b"".join(lines[max(number - 3, 0) : number])
    return b"info2 0x0000000080000040" in before


@pytest.mark.parametrize(
    "planted", PLANTED, ids=lambda planted: f"{planted[3]}: {planted[2][-40:]}"
)
def test_one_changed_line_is_found_in_that_line(planted: tuple[str, int, str, str]) -> None:
    old, which, new, rule = planted
    lines = SAMPLE.decode().splitlines()
    holding = [number for number, line in enumerate(lines) if old in line]
    changed = holding[which - 1]
    lines[changed] = lines[changed].replace(old, new)
    checked = check("\n".join(lines).encode())
    first = checked.findings[0]
    assert first.rule == rule
    assert first.line - changed in (1, 3, 5)
    assert any(number == changed + 1 for number, _text in first.lines)


def test_the_original_bug_is_told_with_its_line() -> None:
    old, _which, new, rule = PLANTED[0]
    checked = check(SAMPLE.replace(old.encode(), new.encode()))
    (finding,) = checked.findings
    assert finding.rule == rule == "X3"
    text = dict(finding.lines)[finding.line]
    assert text.startswith(b"kvm_nested_vmexit_inject: reason: EXTERNAL_INTERRUPT")
    assert b"ext_inf2: 0x0000000080000040 ext_int: 0x80000051" in text
    assert any(line.startswith(b"kvm_inj_virq: IRQ 0x40") for _number, line in finding.lines)


def test_an_exit_that_came_late_is_found_in_the_real_trace() -> None:
    """The repairs in delivery turned into ones of L2's instructions: L2 ran while 0x51 was pending."""
    lines = SAMPLE.decode().splitlines()
    start = max(number for number, line in enumerate(lines) if line.startswith("# tracer"))
    for number in range(start, len(lines)):
        lines[number] = lines[number].replace(
            "info2 0x0000000080000040", "info2 0x0000000000000000"
        )
    lines = [line for number, line in enumerate(lines) if number < start or "IRQ 0x40" not in line]
    (finding,) = check("\n".join(lines).encode()).findings
    assert finding.rule == "P12"
    assert "interrupt 0x51 for L1 was pending" in finding.sentence
    assert any(b"kvm_apic_accept_irq" in text for _number, text in finding.lines)


@pytest.mark.parametrize("chunk_size", [1, 7, 100, 4096])
def test_chunks_make_no_difference(chunk_size: int) -> None:
    old, _which, new, _rule = PLANTED[0]
    content = SAMPLE.replace(old.encode(), new.encode())
    whole, cut = check(content), check(content, chunk_size)
    assert cut.findings == whole.findings
    assert (cut.lines, cut.events) == (whole.lines, whole.events)
