"""One event of KVM's trace, in the spellings of kernels 4.x to 6.x and of trace-cmd's plug-in.

`SPELLINGS` is the table: for each trace point the patterns of its text, newest first, and what makes a
record of a match. The kernel's spellings are those of TP_printk in arch/x86/kvm/trace.h; what differs is
noted in the table. A text that fits none gives None, and the reader counts it.

The text of a trace point is all that a record is made of, so equal texts give the one record (`Texts`);
real traces repeat few texts very often, and reading by pattern is most of the cost.
"""

import re
from collections.abc import Callable
from typing import Final

from nvmx_core.arch.events import EXTERNAL_INTERRUPT, SOFTWARE_INTERRUPT, VECTOR_NAMES
from nvmx_fuzz.trace.reasons import read_reason
from nvmx_fuzz.trace.records import (
    ApicUse,
    Arrival,
    Entry,
    EntryRefused,
    Event,
    ExceptionInjected,
    Exit,
    Interlude,
    InterruptInjected,
    NestedEntry,
    NestedExit,
    PageFault,
    Reflected,
)
from nvmx_fuzz.trace.words import UNKNOWN, Fault, judge_exit, judge_hardware_interrupt

_Match = re.Match[bytes]
_Maker = Callable[[_Match], Event | None]
Spelling = tuple[re.Pattern[bytes], _Maker]

_EXCEPTION_VECTORS: Final[dict[bytes, int]] = {
    name.removeprefix("#").encode(): vector for vector, name in VECTOR_NAMES.items()
} | {b"VE": 20, b"CP": 21, b"HV": 28, b"VC": 29, b"SX": 30}
_NUMBER: Final = rb"(?:0x)?([0-9a-f]{1,16})"
_REASON: Final = rb"([!-~]{1,40}(?: [!-~]{1,40}){0,4}?)"


def _entry(match: _Match) -> Event:
    vcpu, rip, event, immediate = match.groups()
    return Entry(int(vcpu), _hexadecimal(rip), _word(event), immediate is not None)


def _exit_with_all(match: _Match) -> Event | None:
    """From 5.10 on: info2 is IDT-vectoring information."""
    vcpu, reason, rip, info1, info2, intr_info = match.groups()
    return _exit(vcpu, reason, rip, info1, int(info2, 16), int(intr_info, 16))


def _exit_with_interruption(match: _Match) -> Event | None:
    """Before 5.10: the second number is interruption information, and IDT-vectoring is not printed."""
    vcpu, reason, rip, info1, info2 = match.groups()
    return _exit(vcpu, reason, rip, info1, UNKNOWN, int(info2, 16))


def _exit_of_plugin(match: _Match) -> Event | None:
    """Of trace-cmd's plug-in: the second number is one or the other, as the kernel was."""
    reason, rip, info1, _info2 = match.groups()
    return _exit(None, reason, rip, info1, UNKNOWN, UNKNOWN)


def _exit(
    vcpu: bytes | None, reason_text: bytes, rip: bytes, info1: bytes, vectoring: int, interruption: int
) -> Event | None:  # fmt: skip
    reason = read_reason(reason_text)
    if reason is None or max(vectoring, interruption) > _WORD_MAX:
        return None
    basic, failed = reason
    faults: tuple[Fault, ...] = ()
    if not failed:
        faults = judge_exit(basic, vectoring, interruption, "exit")
        faults += judge_hardware_interrupt(basic, interruption)
    number = UNKNOWN if vcpu is None else int(vcpu)
    return Exit(
        number, basic, failed, int(rip, 16), int(info1, 16), vectoring, interruption, faults
    )


def _nested_exit_with_all(match: _Match) -> Event | None:
    event = _exit_with_all(match)
    return NestedExit(*event) if isinstance(event, Exit) else None


def _nested_exit(match: _Match) -> Event | None:
    rip, reason, info1, info2, interruption = match.groups()
    event = _exit(None, reason, rip, info1, int(info2, 16), int(interruption, 16))
    return NestedExit(*event) if isinstance(event, Exit) else None


def _reflected(match: _Match) -> Event | None:
    reason_text, info1, info2, interruption_text = match.groups()
    reason = read_reason(reason_text)
    vectoring, interruption = int(info2, 16), int(interruption_text, 16)
    if reason is None or max(vectoring, interruption) > _WORD_MAX:
        return None
    basic, failed = reason
    faults = () if failed else judge_exit(basic, vectoring, interruption, "nested exit")
    return Reflected(basic, failed, int(info1, 16), vectoring, interruption, faults)


def _nested_entry(match: _Match) -> Event:
    kind, vmcs, l2_rip, event, has_ept = match.groups()
    return NestedEntry(
        kind == b"vmcs", int(vmcs, 16), int(l2_rip, 16), int(event, 16), has_ept in (b"y", b"on")
    )


def _interrupt_injected(match: _Match) -> Event | None:
    kind, vector_text, reinjected = match.groups()
    vector = int(vector_text, 16)
    if vector > _VECTOR_MAX:
        return None
    event_type = EXTERNAL_INTERRUPT if kind == b"IRQ" else SOFTWARE_INTERRUPT
    return InterruptInjected(vector, event_type, int(reinjected is not None))


def _interrupt_injected_before_5_19(match: _Match) -> Event | None:
    vector = int(match[1])
    return InterruptInjected(vector, UNKNOWN, UNKNOWN) if vector <= _VECTOR_MAX else None


def _exception_injected(match: _Match) -> Event | None:
    name, number, reinjected = match.groups()
    vector = _EXCEPTION_VECTORS.get(name) if name is not None else int(number, 16)
    if vector is None or vector > _VECTOR_MAX:
        return None
    return ExceptionInjected(vector, reinjected is not None)


def _arrival(match: _Match) -> Event | None:
    apic, vector, mode = match.groups()
    if int(vector) > _VECTOR_MAX:
        return None
    return Arrival(int(apic, 16), int(vector), mode in (b"Fixed", b"LowPrio"), is_posted=False)


def _posted_arrival(match: _Match) -> Event | None:
    event = _arrival(match)
    return event._replace(is_posted=True) if isinstance(event, Arrival) else None


def _apic_use(match: _Match) -> Event:
    return ApicUse(int(match[1], 16))


def _own_apic_use(_match: _Match) -> Event:
    return ApicUse(UNKNOWN)


def _interlude(_match: _Match) -> Event:
    return Interlude()


def _entry_refused(_match: _Match) -> Event:
    return EntryRefused()


def _page_fault(match: _Match) -> Event:
    return PageFault(int(match[1], 16), int(match[2], 16))


_WORD_MAX: Final = 0xFFFFFFFF
_VECTOR_MAX: Final = 255


def _hexadecimal(text: bytes | None) -> int:
    return UNKNOWN if text is None else int(text, 16)


def _word(text: bytes | None) -> int:
    return UNKNOWN if text is None else int(text, 16) & _WORD_MAX


def _spelling(pattern: bytes, maker: _Maker) -> Spelling:
    """A pattern of the whole text; NUM stands for a hexadecimal number, REASON for an exit reason."""
    pattern = pattern.replace(b"NUM", _NUMBER).replace(b"REASON", _REASON)
    return re.compile(pattern + rb"[^\x21-\x7e]*"), maker


_EXIT_WITH_ALL: Final = (
    rb"vcpu (\d{1,9}) reason REASON rip NUM info1 NUM info2 NUM intr_info NUM error_code"
    rb" (?:0x)?[0-9a-f]{1,16}(?: requests 0x[0-9a-f]{1,16})?"
)
_ARRIVAL: Final = (
    rb"apicid ([0-9a-f]{1,8}) vec (\d{1,3}) \((\w+)\|(?:edge|level)\)(?: \(coalesced\))?"
)
_EOI: Final = rb"apicid ([0-9a-f]{1,8}) vector -?\d+"
_NESTED_WORDS: Final = rb" ext_inf1: NUM ext_inf2: NUM ext_int: NUM ext_int_err: (?:0x)?[0-9a-f]+"
_PLUGIN_WORDS: Final = rb" info1 NUM info2 NUM int_info NUM int_info_err [0-9a-f]+"

SPELLINGS: Final[dict[bytes, tuple[Spelling, ...]]] = {
    # 4.x: "vcpu 0"; rip since 5.x; "[immediate exit]" since 6.1; later the injection, also spelled inj.
    b"kvm_entry": (
        _spelling(
            rb"vcpu (\d{1,9})(?:,? rip NUM)?(?: (?:intr_info|inj) NUM (?:inj_)?error_code (?:0x)?[0-9a-f]+)?"
            rb" ?(\[(?:immediate exit|imm exit|req_imm_exit)\])?(?: ?\[guest\])?",
            _entry,
        ),
    ),
    b"kvm_exit": (
        _spelling(_EXIT_WITH_ALL, _exit_with_all),
        _spelling(rb"vcpu (\d{1,9}) reason REASON rip NUM info NUM NUM", _exit_with_interruption),
        _spelling(rb"reason REASON rip NUM info NUM NUM", _exit_of_plugin),
    ),
    b"kvm_nested_vmexit": (
        _spelling(_EXIT_WITH_ALL, _nested_exit_with_all),
        _spelling(rb"rip:? NUM reason: REASON" + _NESTED_WORDS, _nested_exit),
        _spelling(rb"rip NUM reason REASON" + _PLUGIN_WORDS, _nested_exit),
    ),
    b"kvm_nested_vmexit_inject": (
        _spelling(rb"reason: REASON" + _NESTED_WORDS, _reflected),
        _spelling(rb"reason REASON" + _PLUGIN_WORDS, _reflected),
    ),
    b"kvm_nested_vmenter": (
        _spelling(
            rb"rip: (?:0x)?[0-9a-f]+ (vmcs|vmcb): NUM nested_rip: NUM int_ctl: (?:0x)?[0-9a-f]+"
            rb" event_inj: 0x([0-9a-f]{1,8}) nested_[en]pt=([yn])(?: [ -~]{0,80})?",
            _nested_entry,
        ),
    ),
    b"kvm_nested_vmrun": (
        _spelling(
            rb"rip: (?:0x)?[0-9a-f]+ (vmcs|vmcb): NUM n(?:ested_)?rip: NUM int_ctl: (?:0x)?[0-9a-f]+"
            rb" event_inj: 0x([0-9a-f]{1,8}) npt: (on|off)",
            _nested_entry,
        ),
    ),
    b"kvm_nested_vmenter_failed": (_spelling(rb"[ -~]*", _entry_refused),),
    b"kvm_inj_virq": (
        _spelling(rb"(IRQ|Soft/INTn) 0x([0-9a-f]{1,8})( \[reinjected\])?", _interrupt_injected),
        _spelling(rb"irq (\d{1,9})", _interrupt_injected_before_5_19),
    ),
    # The error code: always before 5.19, then for those that have one.
    b"kvm_inj_exception": (
        _spelling(
            rb"(?:#(\w{2})|0x([0-9a-f]{1,8}))(?: \((?:0x)?[0-9a-f]+\))?( \[reinjected\])?",
            _exception_injected,
        ),
    ),
    b"kvm_apic_accept_irq": (_spelling(_ARRIVAL, _arrival),),
    b"kvm_apicv_accept_irq": (_spelling(_ARRIVAL, _posted_arrival),),
    b"kvm_eoi": (_spelling(_EOI, _apic_use),),
    b"kvm_pv_eoi": (_spelling(_EOI, _apic_use),),
    b"kvm_apic": (_spelling(rb"apic_(?:write|read) [ -~]+", _own_apic_use),),
    b"kvm_userspace_exit": (_spelling(rb"[ -~]*", _interlude),),
    b"kvm_enter_smm": (_spelling(rb"[ -~]*", _interlude),),
    b"kvm_smm_transition": (_spelling(rb"[ -~]*", _interlude),),
    # 4.x and 5.x print neither vCPU nor rip.
    b"kvm_page_fault": (
        _spelling(
            rb"(?:vcpu \d+ )?(?:rip (?:0x)?[0-9a-f]+ )?address NUM error_code NUM", _page_fault
        ),
    ),
}

_TEXTS_MAX: Final = 1 << 15
_TEXT_LENGTH_MAX: Final = 512


class Texts:
    """The records of texts that were read; a bounded number of them is kept."""

    def __init__(self) -> None:
        """Begin with none."""
        self.known: dict[bytes, Event | None] = {}

    def read(self, text: bytes, name: bytes, detail: bytes) -> Event | None:
        """The record of *text*, ``NAME:DETAIL``, or None when no spelling of that name fits.

        The name is one that `SPELLINGS` has.
        """
        event = None
        detail = detail.strip(b" ")
        if len(detail) <= _TEXT_LENGTH_MAX:
            for pattern, maker in SPELLINGS[name]:
                match = pattern.fullmatch(detail)
                if match is not None:
                    event = maker(match)
                    break
        if len(self.known) >= _TEXTS_MAX:
            self.known.clear()
        self.known[text] = event
        return event
