"""The configuration of a scenario in words: what the machine offers, what L1 asked for, how L2 starts."""

from typing import Final

from nvmx_core.arch.fields import EXCEPTION_BITMAP, PF_ERROR_MASK, PF_ERROR_MATCH
from nvmx_core.scenario.config import FLAG_BIT as BIT
from nvmx_core.scenario.config import (
    IN_KERNEL_APIC,
    INTERRUPTS_ON,
    REAL_MODE,
    SINGLE_STEP,
    USER_MODE,
    Config,
)
from nvmx_fuzz.decode_words import hexadecimal, vmcs_meaning

_L1_CONTROLS: Final = (
    "external-interrupt-exiting",
    "acknowledge-interrupt-on-exit",
    "nmi-exiting",
    "virtual-nmis",
    "hlt-exiting",
    "tpr-shadow",
    "virtual-interrupt-delivery",
    "posted-interrupts",
    "preemption-timer",
    "save-preemption-timer",
    "unconditional-io-exiting",
)
_UNUSUAL_CAPABILITIES: Final = (
    ("error-code-optional", 1),
    ("zero-length-injection", 1),
    ("hlt-activity", 0),
    ("shutdown-activity", 0),
    ("wait-for-sipi-activity", 0),
    ("mtf-offered", 0),
    ("sti-blocks-nmi", 1),
)


def setup_texts(config: Config) -> tuple[str, ...]:
    """One line each for L0, L1 and L2, as ``who  what``."""
    return (
        f"L0  {_l0_text(config)}",
        f"L1  {_l1_text(config)}",
        f"L2  {_l2_text(config)}",
    )


def _l0_text(config: Config) -> str:
    words = ["EPT" if config.l0_ept else "shadow paging"]
    words.append("in-kernel APIC" if config.flags & IN_KERNEL_APIC else "APIC in userspace")
    if config.l0_exceptions:
        bitmap = vmcs_meaning("EXCEPTION_BITMAP", config.l0_exception_bitmap)
        words.append(f"intercepts {bitmap} itself")
    words += [
        name if usual else f"no {name}"
        for name, usual in _UNUSUAL_CAPABILITIES
        if bool(config.flags & BIT[name]) == bool(usual)
    ]
    return ", ".join(words)


def _l1_text(config: Config) -> str:
    words = ["EPT" if config.l1_ept else "no EPT"]
    words += [name for name in _L1_CONTROLS if config.flags & BIT[name]]
    vmcs = config.initial_vmcs
    if vmcs[EXCEPTION_BITMAP]:
        words.append(f"intercepts {vmcs_meaning('EXCEPTION_BITMAP', vmcs[EXCEPTION_BITMAP])}")
    if config.pf_filter:
        mask, match = hexadecimal(vmcs[PF_ERROR_MASK]), hexadecimal(vmcs[PF_ERROR_MATCH])
        words.append(f"#PF error-code mask {mask}, match {match}")
    return ", ".join(words)


def _l2_text(config: Config) -> str:
    flags = config.flags
    words = ["real mode" if flags & REAL_MODE else "protected mode"]
    words.append("CPL 3" if flags & USER_MODE else "CPL 0")
    words.append("IF=1" if flags & INTERRUPTS_ON else "IF=0")
    if flags & SINGLE_STEP:
        words.append("TF=1")
    return ", ".join(words)
