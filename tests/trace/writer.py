"""Traces made of event lists, in the spelling of every kernel and tool that the reader knows.

A `Trace` holds what happened; `render` says how a kernel prints it. What a kernel has no event or no
field for is left out, as it is in a real trace.
"""

from dataclasses import dataclass, field
from typing import Any

PID = 4242
OTHER_PID = 4243


@dataclass(frozen=True)
class Form:
    """A kernel version as (major, minor), and how lines are printed."""

    name: str
    kernel: tuple[int, int]
    lines: str = "ftrace"
    plugin: bool = False


FORMS = {
    form.name: form
    for form in (
        Form("4.8", (4, 8)),
        Form("4.8-trace-cmd", (4, 8), "trace-cmd"),
        Form("4.8-plugin", (4, 8), "trace-cmd", plugin=True),
        Form("5.10", (5, 10)),
        Form("5.10-trace-cmd", (5, 10), "trace-cmd"),
        Form("6.1", (6, 1)),
        Form("6.1-tgid", (6, 1), "tgid"),
        Form("6.1-trace-cmd", (6, 1), "trace-cmd"),
        Form("6.13", (6, 13)),
        Form("6.13-trace-cmd", (6, 13), "trace-cmd"),
    )
}


@dataclass
class Trace:
    """A list of events; each method appends one and returns the trace."""

    pid: int = PID
    vcpu: int = 0
    task: str = "CPU 0/KVM"
    cpu: int = 0
    events: list[tuple[str, int, str, int, dict[str, Any]]] = field(default_factory=list)

    def add(self, kind: str, **fields: Any) -> "Trace":
        self.events.append((kind, self.pid, self.task, self.cpu, {"vcpu": self.vcpu, **fields}))
        return self

    def on(self, pid: int = PID, vcpu: int = 0, cpu: int = 0) -> "Trace":
        """Go on in another thread, or on another CPU."""
        self.pid, self.vcpu, self.task, self.cpu = pid, vcpu, f"CPU {vcpu}/KVM", cpu
        return self

    def entry(self, rip: int = 0x1000, event: int = 0, immediate: bool = False) -> "Trace":
        return self.add("entry", rip=rip, event=event, immediate=immediate)

    def exit(
        self, reason: str, vectoring: int = 0, interruption: int = 0, qualification: int = 0
    ) -> "Trace":
        """An exit of L1."""
        if reason == "EXTERNAL_INTERRUPT" and not interruption:
            interruption = 0x800000EC
        return self.add(
            "exit",
            reason=reason,
            vectoring=vectoring,
            interruption=interruption,
            qualification=qualification,
            rip=0x1000,
        )

    def l2_exit(
        self, reason: str, vectoring: int = 0, interruption: int = 0, qualification: int = 0
    ) -> "Trace":
        """An exit of L2: the same event, then the one that says so."""
        self.exit(reason, vectoring, interruption, qualification)
        fields = self.events[-1][4]
        return self.add("nested_exit", **{name: fields[name] for name in fields if name != "vcpu"})

    def reflected(
        self, reason: str, vectoring: int = 0, interruption: int = 0, qualification: int = 0
    ) -> "Trace":
        return self.add(
            "reflected",
            reason=reason,
            vectoring=vectoring,
            interruption=interruption,
            qualification=qualification,
        )

    def nested_entry(self, event: int = 0) -> "Trace":
        self.exit("VMRESUME")
        return self.add("nested_entry", event=event)

    def interrupt(self, vector: int, soft: bool = False, again: bool = False) -> "Trace":
        return self.add("interrupt", vector=vector, soft=soft, again=again)

    def exception(self, name: str, error: int | None = None, again: bool = False) -> "Trace":
        return self.add("exception", name=name, error=error, again=again)

    def arrival(self, vector: int, apic: int = 0, posted: bool = False) -> "Trace":
        return self.add("arrival", vector=vector, apic=apic, posted=posted)

    def other(self, text: str) -> "Trace":
        """Any event, spelled out."""
        return self.add("other", text=text)

    def line(self, text: str) -> "Trace":
        """A line that is no event."""
        return self.add("line", text=text)

    def render(self, form: Form) -> bytes:
        lines = ["# tracer: nop", "#"] if form.lines != "trace-cmd" else ["cpus=4"]
        for number, (kind, pid, task, cpu, fields) in enumerate(self.events):
            if kind == "line":
                lines.append(fields["text"])
                continue
            text = _text(kind, fields, form)
            if text is not None:
                lines.append(_line(form, pid, task, cpu, number, text))
        return "".join(f"{line}\n" for line in lines).encode()


def _line(form: Form, pid: int, task: str, cpu: int, number: int, text: str) -> str:
    name, _, detail = text.partition(": ")
    time = f"{100 + number / 1e6:.6f}"
    head = f"{task:>16}-{pid:<7}"
    if form.lines == "tgid":
        return f"{head} (   4000) [{cpu:03}] d..1. {time}: {text}"
    if form.lines == "trace-cmd":
        return f"{head} [{cpu:03}]  {time}: {name + ':':<21} {detail}"
    return f"{head} [{cpu:03}] d..1. {time}: {text}"


def _text(kind: str, f: dict[str, Any], form: Form) -> str | None:
    maker = _MAKERS[kind]
    text = maker(f, form)
    return None if text is None else str(text)


def _entry(f: dict[str, Any], form: Form) -> str:
    if form.kernel < (5, 0):
        return f"kvm_entry: vcpu {f['vcpu']}"
    text = f"kvm_entry: vcpu {f['vcpu']}, rip 0x{f['rip']:x}"
    if form.kernel >= (6, 13):
        text += f" intr_info 0x{f['event']:08x} error_code 0x00000000"
    if form.kernel >= (6, 1) and f["immediate"]:
        text += "[immediate exit]"
    return text


def _full_exit(f: dict[str, Any], form: Form) -> str:
    text = (
        f"vcpu {f['vcpu']} reason {f['reason']} rip 0x{f['rip']:x} info1 0x{f['qualification']:016x} "
        f"info2 0x{f['vectoring']:016x} intr_info 0x{f['interruption']:08x} error_code 0x00000000"
    )
    return f"{text} requests 0x0000000000000000" if form.kernel >= (6, 13) else text


def _exit(f: dict[str, Any], form: Form) -> str:
    if form.kernel >= (5, 10):
        return f"kvm_exit: {_full_exit(f, form)}"
    words = (
        f"reason {f['reason']} rip 0x{f['rip']:x} info {f['qualification']:x} {f['interruption']:x}"
    )
    return f"kvm_exit: {words}" if form.plugin else f"kvm_exit: vcpu {f['vcpu']} {words}"


def _words(f: dict[str, Any], form: Form) -> str:
    if form.plugin:
        return (
            f"reason {f['reason']} info1 {f['qualification']:x} info2 {f['vectoring']:x} "
            f"int_info {f['interruption']:x} int_info_err 0"
        )
    return (
        f"reason: {f['reason']} ext_inf1: 0x{f['qualification']:016x} ext_inf2: 0x{f['vectoring']:016x} "
        f"ext_int: 0x{f['interruption']:08x} ext_int_err: 0x00000000"
    )


def _nested_exit(f: dict[str, Any], form: Form) -> str:
    if form.kernel >= (5, 10):
        return f"kvm_nested_vmexit: {_full_exit(f, form)}"
    rip = f"rip {f['rip']:x}" if form.plugin else f"rip: 0x{f['rip']:016x}"
    return f"kvm_nested_vmexit: {rip} {_words(f, form)}"


def _reflected(f: dict[str, Any], form: Form) -> str:
    return f"kvm_nested_vmexit_inject: {_words(f, form)}"


def _nested_entry(f: dict[str, Any], form: Form) -> str | None:
    if form.kernel < (6, 1):
        return None
    return (
        "kvm_nested_vmenter: rip: 0x0000000000100023 vmcs: 0x0000000000021000 nested_rip: 0x0000000000001000 "
        f"int_ctl: 0x00000000 event_inj: 0x{f['event']:08x} nested_ept=y nested_eptp: 0x000000000003001e"
    )


def _interrupt(f: dict[str, Any], form: Form) -> str:
    if form.kernel < (6, 0):
        return f"kvm_inj_virq: irq {f['vector']}"
    kind = "Soft/INTn" if f["soft"] else "IRQ"
    return f"kvm_inj_virq: {kind} 0x{f['vector']:x}{' [reinjected]' if f['again'] else ''}"


def _exception(f: dict[str, Any], form: Form) -> str | None:
    if form.kernel < (6, 0):
        return None if f["again"] else f"kvm_inj_exception: #{f['name']} (0x{f['error'] or 0:x})"
    error = "" if f["error"] is None else f" (0x{f['error']:x})"
    return f"kvm_inj_exception: #{f['name']}{error}{' [reinjected]' if f['again'] else ''}"


def _arrival(f: dict[str, Any], _form: Form) -> str:
    name = "kvm_apicv_accept_irq" if f["posted"] else "kvm_apic_accept_irq"
    return f"{name}: apicid {f['apic']:x} vec {f['vector']} (Fixed|edge)"


_MAKERS: dict[str, Any] = {
    "entry": _entry,
    "exit": _exit,
    "nested_exit": _nested_exit,
    "reflected": _reflected,
    "nested_entry": _nested_entry,
    "interrupt": _interrupt,
    "exception": _exception,
    "arrival": _arrival,
    "other": lambda f, _form: f["text"],
}
