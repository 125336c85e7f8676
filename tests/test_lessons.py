"""Scenarios on which the model was once wrong: each found by a random run, minimised, and kept.

On ``fixed`` all of them show the same on both machines and break no rule.
"""

from typing import Final

import pytest

from nvmx_core.oracle.judge import run_and_judge
from nvmx_core.scenario.config import config_for
from nvmx_core.scenario.text import parse_scenario

LESSONS: Final[dict[str, str]] = {
    "G9 with P5: INIT at an entry into a shadow with a single step pending, which must stay there": """
        L1 control monitor-trap-flag on
        L1 vmwrite GUEST_RFLAGS 0x102
        L1 enter
        L2 sti
        outside init
        L1 enter""",
    "G9 with P4: the same for an SMI at the entry, which the trap survives": """
        L1 vmwrite GUEST_RFLAGS 0x302
        L1 vmwrite GUEST_INTERRUPTIBILITY 0x1
        L1 vmwrite GUEST_PENDING_DBG 0x4000
        outside smi at-entry
        L1 enter
        outside rsm""",
    "G9, M5: the same when the entry is cancelled in between": """
        L1 vmwrite GUEST_RFLAGS 0x302
        L1 vmwrite GUEST_INTERRUPTIBILITY 0x1
        L1 vmwrite GUEST_PENDING_DBG 0x4000
        outside init
        L0 cancel-entry
        L1 enter""",
    "G9, M5: the same when L1 injects an MTF exit itself": """
        L1 vmwrite GUEST_RFLAGS 0x302
        L1 vmwrite GUEST_INTERRUPTIBILITY 0x1
        L1 vmwrite GUEST_PENDING_DBG 0x4000
        L1 inject other-event
        outside init
        L1 enter""",
    "V2: an NMI at the handler of an interrupt with its vector is another event": """
        config nmi-exiting=off
        L1 inject external-interrupt 0x2
        L1 enter
        outside nmi""",
    "P5 before P7: an INIT comes before traps that MOV SS held over a soft injection": """
        L1 vmwrite GUEST_PENDING_DBG 0x1000
        L1 vmwrite GUEST_INTERRUPTIBILITY 0x2
        outside init
        L1 inject software-interrupt 0x0 length=1
        L1 enter""",
    "P6 before P7: a pending MTF that went back into its queue comes before a withheld trap": """
        L1 ept idt-low absent
        L1 inject other-event
        L0 save-restore at-entry
        outside smi at-entry
        L1 vmwrite GUEST_PENDING_DBG 0x4000
        L1 enter
        outside rsm""",
    "P6 before P7: the same when the entry was cancelled": """
        outside init
        L2 page idt-low absent
        L1 enter
        L0 cancel-entry
        outside smi at-entry
        L1 vmwrite GUEST_PENDING_DBG 0x4000
        L1 inject other-event
        L1 enter
        outside rsm""",
    "X12: the instruction that met a dropped page runs again": """
        L1 enter
        L0 drop-page data
        L2 load""",
    "D2: a page fault of L0's own leaves no RF in the frame of the interrupted event": """
        config l0-ept=off
        L0 drop-page gdt
        L1 inject hardware-exception #UD
        L1 enter""",
    "N1: without virtual NMIs bit 3 belongs to L1 although L2 executes IRET": """
        config virtual-nmis=off
        outside interrupt 0xab at-entry
        L1 inject nmi
        L1 enter
        L1 enter""",
    "K4: the kick behind a virtual interrupt also asks for the evaluation": """
        config tpr-shadow=on virtual-interrupt-delivery=on
        outside post-interrupt 0xc6 at-entry
        L1 virtual-interrupt 0xf2
        L1 enter""",
    "P4 before P7: an SMI comes before the trap of the instruction that L0 emulated": """
        config single-step=on
        L1 enter
        outside smi in-emulation
        L2 rdpmc""",
    "X10: an NMI that a nested fault replaced has blocked NMIs": """
        config exceptions=#GP,#UD l0-exceptions=#PF,#DF
        L2 page idt-low absent
        L1 inject nmi
        L1 enter""",
    "O6: only a delivery that L0 interrupted keeps a trap for its re-injection": """
        L1 enter
        L0 cancel-entry
        L2 popf 0x2
        L2 invd
        L1 inject software-exception #OF length=1
        L1 enter
        L2 wbinvd""",
    "O6: the mark of an interrupted delivery does not outlive the exit to L1": """
        config user-mode=on single-step=on exceptions=#GP,#NP
        L1 enter
        L0 cancel-entry
        L2 pop-ss
        L2 int 0xe
        L1 enter""",
    "Y6: INIT keeps an enabled breakpoint without conditions": """
        outside init
        L1 vmwrite GUEST_PENDING_DBG 0x1000
        L1 enter""",
    "N2: a latched NMI arrives in L1 between its IRET and its VMRESUME": """
        L1 enter
        outside nmi
        outside nmi
        L1 inject reserved 0x0
        L1 enter
        L0 save-restore""",
    "B8: a vCPU restored in SMM knows that NMIs are blocked in L2": """
        config virtual-nmis=off
        L1 inject nmi
        L1 enter
        outside smi
        L0 save-restore""",
    "Y3: RF that L0 set for its own injections does not reach L1": """
        config l0-ept=off
        L2 page idt-low absent
        L1 inject nmi
        L1 enter
        L1 inject external-interrupt 0x40
        L1 enter no-repair""",
    "D4: a fault that replaces a soft event drops the trap that MOV SS held": """
        config user-mode=on single-step=on
        L1 enter
        L0 drop-page tss
        L2 mov-ss
        L2 int 0xe""",
    "V10: the shadow that keeps a held trap does not block what waits": """
        config l0-ept=off nmi-exiting=off single-step=on
        L0 drop-page gdt
        L1 enter
        L2 pop-ss
        outside nmi
        L2 int 0x80""",
    "P5: an arrival in a delivery that keeps a trap waits until the trap is gone": """
        config l0-ept=off external-interrupt-exiting=off single-step=on
        L1 enter
        L2 page stack absent
        outside interrupt 0x80 at-entry
        outside init in-delivery
        L2 mov-ss
        L2 int 0x80
        L1 enter""",
    "Y1: a task gate may cut off a delivery in which #DB has happened": """
        config single-step=on
        L2 page stack absent
        L2 gate 0xe task
        L1 enter
        L2 mov-cr3""",
    "B1: an interrupt that a finished shadow lets through comes by L0's window": """
        config external-interrupt-exiting=off interrupts-on=off
        L1 enter
        outside interrupt 0x51
        L2 sti
        L2 out""",
}


@pytest.mark.parametrize("lesson", sorted(LESSONS))
def test_lesson(lesson: str) -> None:
    lines = (line.strip() for line in LESSONS[lesson].strip().splitlines())
    scenario = parse_scenario("version 1\n" + "\n".join(lines) + "\n").scenario
    verdict = run_and_judge(scenario, config_for(scenario.config))
    assert verdict.violations == ()
