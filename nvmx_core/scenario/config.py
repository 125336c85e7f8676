"""The configuration of a scenario: what the machine offers, what L1 turned on, how L2 starts.

Every choice is one bit of ``flags`` (named in ``FLAGS``) or one small number. The packed form holds the
*difference* to the default, so that zero bytes mean a configuration that enters L2 and is worth running.
Impossible combinations are not refused but resolved, the same way everywhere: see ``Config``.
"""

from typing import Final

from nvmx_core.arch.capabilities import Capabilities
from nvmx_core.arch.controls import (
    CPU_HLT_EXITING,
    CPU_SECONDARY_CONTROLS,
    CPU_TPR_SHADOW,
    CPU_UNCOND_IO_EXITING,
    EXIT_ACK_INTR_ON_EXIT,
    EXIT_SAVE_PREEMPTION_TIMER,
    PIN_EXT_INTR_EXITING,
    PIN_NMI_EXITING,
    PIN_POSTED_INTR,
    PIN_PREEMPTION_TIMER,
    PIN_VIRTUAL_NMIS,
    SECONDARY_EPT,
    SECONDARY_UNRESTRICTED_GUEST,
    SECONDARY_VIRTUAL_INTR_DELIVERY,
)
from nvmx_core.arch.events import AC, BP, DB, DE, DF, GP, NP, PF, UD
from nvmx_core.arch.fields import (
    CPU_BASED,
    EXCEPTION_BITMAP,
    EXIT_CONTROLS,
    FIELD_COUNT,
    GUEST_CR0,
    GUEST_PREEMPTION_TIMER,
    GUEST_RFLAGS,
    GUEST_RIP,
    GUEST_SS_DPL,
    HOST_RIP,
    PF_ERROR_MASK,
    PF_ERROR_MATCH,
    PIN_BASED,
    POSTED_INTR_NV,
    SECONDARY,
    VMCS_LINK_POINTER,
    Vmcs,
)
from nvmx_core.arch.state import CR0_PE, LINK_POINTER_NONE, RFLAGS_FIXED, RFLAGS_IF, RFLAGS_TF
from nvmx_core.cpu.entry_checks import EntryChecker
from nvmx_core.guests.memory import CODE_BASE

# The order of the flags is part of the byte form: append only.
FLAGS: Final[tuple[tuple[str, int], ...]] = (
    ("l0-ept", 1),
    ("l1-ept", 1),
    ("in-kernel-apic", 1),
    ("real-mode", 0),
    ("error-code-optional", 0),
    ("zero-length-injection", 0),
    ("hlt-activity", 1),
    ("shutdown-activity", 1),
    ("wait-for-sipi-activity", 1),
    ("mtf-offered", 1),
    ("sti-blocks-nmi", 0),
    ("external-interrupt-exiting", 1),
    ("nmi-exiting", 1),
    ("virtual-nmis", 1),
    ("acknowledge-interrupt-on-exit", 0),
    ("hlt-exiting", 0),
    ("tpr-shadow", 0),
    ("virtual-interrupt-delivery", 0),
    ("posted-interrupts", 0),
    ("preemption-timer", 0),
    ("unconditional-io-exiting", 0),
    ("save-preemption-timer", 0),
    ("interrupts-on", 1),
    ("user-mode", 0),
    ("single-step", 0),
)
FLAG_BIT: Final[dict[str, int]] = {name: 1 << index for index, (name, _) in enumerate(FLAGS)}
FLAGS_MASK: Final = (1 << len(FLAGS)) - 1
DEFAULT_FLAGS: Final = sum(default << index for index, (_, default) in enumerate(FLAGS))

L0_EPT: Final = FLAG_BIT["l0-ept"]
L1_EPT: Final = FLAG_BIT["l1-ept"]
IN_KERNEL_APIC: Final = FLAG_BIT["in-kernel-apic"]
REAL_MODE: Final = FLAG_BIT["real-mode"]
ERROR_CODE_OPTIONAL: Final = FLAG_BIT["error-code-optional"]
ZERO_LENGTH: Final = FLAG_BIT["zero-length-injection"]
HLT_ACTIVITY: Final = FLAG_BIT["hlt-activity"]
SHUTDOWN_ACTIVITY: Final = FLAG_BIT["shutdown-activity"]
WFS_ACTIVITY: Final = FLAG_BIT["wait-for-sipi-activity"]
MTF_OFFERED: Final = FLAG_BIT["mtf-offered"]
STI_BLOCKS_NMI: Final = FLAG_BIT["sti-blocks-nmi"]
INTERRUPTS_ON: Final = FLAG_BIT["interrupts-on"]
USER_MODE: Final = FLAG_BIT["user-mode"]
SINGLE_STEP: Final = FLAG_BIT["single-step"]

_CONTROL_FLAGS: Final[tuple[tuple[int, int, int], ...]] = tuple(
    (FLAG_BIT[name], field, bit)
    for name, field, bit in (
        ("external-interrupt-exiting", PIN_BASED, PIN_EXT_INTR_EXITING),
        ("nmi-exiting", PIN_BASED, PIN_NMI_EXITING),
        ("virtual-nmis", PIN_BASED, PIN_VIRTUAL_NMIS),
        ("posted-interrupts", PIN_BASED, PIN_POSTED_INTR),
        ("preemption-timer", PIN_BASED, PIN_PREEMPTION_TIMER),
        ("acknowledge-interrupt-on-exit", EXIT_CONTROLS, EXIT_ACK_INTR_ON_EXIT),
        ("save-preemption-timer", EXIT_CONTROLS, EXIT_SAVE_PREEMPTION_TIMER),
        ("hlt-exiting", CPU_BASED, CPU_HLT_EXITING),
        ("tpr-shadow", CPU_BASED, CPU_TPR_SHADOW),
        ("unconditional-io-exiting", CPU_BASED, CPU_UNCOND_IO_EXITING),
        ("virtual-interrupt-delivery", SECONDARY, SECONDARY_VIRTUAL_INTR_DELIVERY),
    )
)

# A flag that needs others: turned off when one of them is off, in this order.
_PREREQUISITES: Final[tuple[tuple[int, int], ...]] = tuple(
    (FLAG_BIT[name], sum(FLAG_BIT[other] for other in needed))
    for name, needed in (
        ("l1-ept", ("l0-ept",)),
        ("real-mode", ("l1-ept",)),
        ("virtual-nmis", ("nmi-exiting",)),
        ("virtual-interrupt-delivery", ("external-interrupt-exiting", "tpr-shadow")),
        ("posted-interrupts", ("virtual-interrupt-delivery", "acknowledge-interrupt-on-exit")),
        ("save-preemption-timer", ("preemption-timer",)),
    )
)

# Which exceptions a configuration byte can choose, lowest bit first; append-only like the flags.
CHOSEN_EXCEPTIONS: Final = (PF, GP, NP, DF, UD, DB, BP, DE)
PF_FILTERS: Final = ((0, 0), (2, 2), (2, 0), (1, 1))
"""Page-fault error-code mask and match: no filter; writes; reads; never (bit 0 is never set here)."""

L0_ALWAYS_INTERCEPTS: Final = 1 << AC
NOTIFICATION_VECTOR: Final = 0xF2
TIMER_START: Final = 100


def exception_bitmap(choice: int) -> int:
    """The exception bitmap that a configuration byte stands for."""
    return _EXCEPTION_BITMAPS[choice & 0xFF]


_EXCEPTION_BITMAPS: Final = tuple(
    sum(1 << vector for bit, vector in enumerate(CHOSEN_EXCEPTIONS) if choice >> bit & 1)
    for choice in range(256)
)


class Config:
    """One configuration, with what machines derive from it.

    ``flags`` are resolved: EPT in L1 needs EPT in L0, real mode needs EPT in L1, user mode is not real
    mode, and controls whose prerequisite is off are off. ``exceptions`` and ``l0_exceptions`` choose what
    L1 and L0 intercept; ``pf_filter`` picks L1's page-fault filter. ``caps`` is what L1's processor offers,
    ``host_caps`` what the processor under L0 offers; ``checker`` and ``host_checker`` check their entries.
    """

    def __init__(
        self, flags: int, exceptions: int = 0, l0_exceptions: int = 0, pf_filter: int = 0
    ) -> None:
        flags &= FLAGS_MASK
        for flag, needed in _PREREQUISITES:
            if flags & needed != needed:
                flags &= ~flag
        if flags & REAL_MODE:
            flags &= ~USER_MODE
        self.flags: Final = flags
        self.exceptions: Final = exceptions & 0xFF
        self.l0_exceptions: Final = l0_exceptions & 0xFF
        self.pf_filter: Final = pf_filter & 3
        self.l0_ept: Final = flags & L0_EPT != 0
        self.l1_ept: Final = flags & L1_EPT != 0
        self.in_kernel_apic: Final = flags & IN_KERNEL_APIC != 0
        self.caps: Final = Capabilities(
            error_code_optional=flags & ERROR_CODE_OPTIONAL != 0,
            zero_length_injection=flags & ZERO_LENGTH != 0,
            hlt=flags & HLT_ACTIVITY != 0,
            shutdown=flags & SHUTDOWN_ACTIVITY != 0,
            wait_for_sipi=flags & WFS_ACTIVITY != 0,
            monitor_trap_flag=flags & MTF_OFFERED != 0,
            ept=self.l1_ept,
            sti_blocks_nmi=flags & STI_BLOCKS_NMI != 0,
        )
        self.host_caps: Final = self.caps._replace(monitor_trap_flag=True, ept=self.l0_ept)
        self.checker: Final = EntryChecker(self.caps)
        self.host_checker: Final = EntryChecker(self.host_caps)
        self.l0_exception_bitmap: Final = exception_bitmap(l0_exceptions) | L0_ALWAYS_INTERCEPTS
        self.initial_vmcs: Final[Vmcs] = self._build_vmcs()

    def _build_vmcs(self) -> Vmcs:
        """The VMCS that L1 has prepared before the first step."""
        vmcs = [0] * FIELD_COUNT
        flags = self.flags
        for flag, field, bit in _CONTROL_FLAGS:
            if flags & flag:
                vmcs[field] |= bit
        vmcs[CPU_BASED] |= CPU_SECONDARY_CONTROLS
        if self.l1_ept:
            vmcs[SECONDARY] |= SECONDARY_EPT | SECONDARY_UNRESTRICTED_GUEST
        vmcs[EXCEPTION_BITMAP] = exception_bitmap(self.exceptions)
        vmcs[PF_ERROR_MASK], vmcs[PF_ERROR_MATCH] = PF_FILTERS[self.pf_filter]
        vmcs[POSTED_INTR_NV] = NOTIFICATION_VECTOR
        vmcs[GUEST_PREEMPTION_TIMER] = TIMER_START
        vmcs[GUEST_CR0] = 0 if flags & REAL_MODE else CR0_PE
        vmcs[GUEST_RFLAGS] = (
            RFLAGS_FIXED
            | (RFLAGS_IF if flags & INTERRUPTS_ON else 0)
            | (RFLAGS_TF if flags & SINGLE_STEP else 0)
        )
        vmcs[GUEST_SS_DPL] = 3 if flags & USER_MODE else 0
        vmcs[GUEST_RIP] = CODE_BASE
        vmcs[HOST_RIP] = 0x1000
        vmcs[VMCS_LINK_POINTER] = LINK_POINTER_NONE
        return vmcs


DEFAULT_CONFIG: Final = Config(DEFAULT_FLAGS)

_CONFIGS_MAX: Final = 1024
_configs: dict[tuple[int, int, int, int], Config] = {}


def config_for(packed: tuple[int, int, int, int]) -> Config:
    """The one Config of a packed configuration; building it costs more than running a step.

    Configs are shared and never change, so a bounded number of them is kept.
    """
    config = _configs.get(packed)
    if config is None:
        if len(_configs) >= _CONFIGS_MAX:
            _configs.clear()
        flags, exceptions, l0_exceptions, pf_filter = packed
        config = Config(flags, exceptions, l0_exceptions, pf_filter)
        _configs[packed] = config
    return config
