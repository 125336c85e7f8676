"""Idioms: short sequences of steps that belong together, and that chance hardly ever puts together.

A single step is easy to draw; four that must stand in order, each with the right operand, are not. These are
the set-ups that the field's own tests begin with: an IRET that faults, a trap in a shadow, an L2 that starts
asleep, an event in flight over a save. They say where to look and nothing of what is wrong there.
"""

from typing import Final

from nvmx_core.scenario.step_text import parse_step
from nvmx_fuzz.codec import encode_step

_TEXTS: Final = (
    # NMI blocking: taken with the injection, ended by IRET, also one that has to run twice.
    ("L1 inject nmi", "L1 enter", "L2 iret"),
    ("L1 control nmi-window-exiting on", "L1 inject nmi", "L1 enter", "L0 drop-page stack", "L2 iret"),
    ("L1 inject nmi", "L1 enter", "L2 page stack absent", "L2 iret"),
    ("L1 control virtual-nmis on", "L1 vmwrite GUEST_INTERRUPTIBILITY 0x8", "L1 enter", "L2 iret"),
    ("outside nmi", "L2 nop", "outside nmi", "L2 iret"),
    # Debug traps: single step, and what an interrupt shadow holds back.
    ("L1 vmwrite GUEST_RFLAGS 0x102", "L1 enter", "L2 nop"),
    ("L1 vmwrite GUEST_RFLAGS 0x102", "L1 enter", "L2 mov-ss", "L2 ud2"),
    ("L1 vmwrite GUEST_RFLAGS 0x102", "L1 enter", "L2 sti", "L2 int1"),
    ("L2 mov-ss", "L2 gp"),
    ("L2 popf 0x1", "L2 mov-ss", "L2 int3"),
    # L2 that starts asleep, and what wakes it.
    ("L1 vmwrite GUEST_ACTIVITY 0x1", "L1 enter"),
    ("L1 vmwrite GUEST_ACTIVITY 0x1", "L1 control nmi-window-exiting on", "L1 enter"),
    ("L1 vmwrite GUEST_ACTIVITY 0x1", "L1 control interrupt-window-exiting on", "L1 enter"),
    ("L1 virtual-interrupt 0x51", "L1 vmwrite GUEST_ACTIVITY 0x1", "L1 enter"),
    ("L1 enter", "L2 hlt", "outside interrupt 0x51"),
    ("L1 vmwrite GUEST_ACTIVITY 0x3", "L1 enter", "outside sipi 0x10"),
    ("outside init", "outside sipi 0x10"),
    # Events in flight over a repair, a cancelled entry, a save.
    ("L1 inject external-interrupt 0x40", "L0 drop-page stack",
     "outside interrupt 0x51 in-delivery", "L1 enter"),
    ("L1 inject external-interrupt 0x40", "L0 cancel-entry", "L1 enter"),
    ("L1 inject external-interrupt 0x40", "L0 save-restore at-entry", "L1 enter"),
    ("L0 drop-page idt-low", "L0 save-restore in-delivery", "L1 enter"),
    ("L1 inject nmi", "L0 drop-page stack", "outside nmi in-delivery", "L1 enter"),
    ("L1 inject software-interrupt 0x80 length=2", "L0 drop-page stack", "L1 enter"),
    # What an entry, a window or the timer owes.
    ("L1 vmwrite GUEST_PREEMPTION_TIMER 0x0", "L1 control preemption-timer on",
     "L0 cancel-entry", "L1 enter"),
    ("L1 vmwrite GUEST_PREEMPTION_TIMER 0x1", "L1 control preemption-timer on", "L1 enter"),
    ("outside interrupt 0x51 at-entry", "L1 enter", "L2 nop"),
    ("L1 control monitor-trap-flag on", "L1 enter", "L2 out"),
    # SMM in between.
    ("L1 enter", "outside smi", "outside interrupt 0x51", "outside rsm"),
    ("L1 enter", "L0 drop-page code", "outside smi in-delivery", "outside rsm"),
    ("L1 vmwrite GUEST_PENDING_DBG 0x4000", "outside smi at-entry", "L1 enter",
     "outside interrupt 0x51", "outside rsm"),
    # Faults that meet faults.
    ("L1 inject hardware-exception #GP", "L2 gate 0xd not-present", "L1 enter"),
    ("L1 inject hardware-exception #PF", "L2 page stack absent", "L1 enter"),
    ("L1 inject hardware-exception #DF", "L2 page stack absent", "L1 enter"),
)  # fmt: skip

IDIOMS: Final[tuple[tuple[bytes, ...], ...]] = tuple(
    tuple(encode_step(parse_step(text.split())) for text in texts) for texts in _TEXTS
)
