"""What is missing, broken or hangs around the image: one clear line each."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("keystone", reason="the extra bochs is not installed")

from nvmx_fuzz import BAD_INPUT
from nvmx_fuzz.boot import emulator, host, known_findings, linux, trace
from nvmx_fuzz.boot.emulator import Emulator, Settings, run_disc
from nvmx_fuzz.boot.iso import MissingToolError, iso_of
from nvmx_fuzz.boot.wire import checksum
from nvmx_fuzz.cli import main
from nvmx_fuzz.core_choice import ROOT
from nvmx_fuzz.outcomes import MissingError, UnavailableError

LAST = "$ *210c8933"
SETTINGS = Settings(megabytes=1, silent_seconds=0.3, start_seconds=0.6)


# -- an emulator that is a script ------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """Runs a disc in an emulator whose life is a few lines of shell; $serial and $log are its files."""

    def run_script(life: str) -> emulator.Ended:
        program = tmp_path / "bochs"
        program.write_text(
            "#!/bin/sh\n"
            """named() { sed -n "s/^$1.*\\"\\(.*\\)\\"$/\\1/p" "$file"; }\n"""
            "file=$3; serial=$(named com1); log=$(named log)\n"
            f"{life}\n"
        )
        program.chmod(0o755)
        bochs = Emulator((str(program),), {}, tmp_path, "3.0")
        monkeypatch.setattr(emulator, "emulator", lambda: bochs)
        return run_disc(b"disc", SETTINGS, LAST)

    return run_script


def ended(run: object, life: str) -> tuple[str, str]:
    assert callable(run)
    text, reason = run(life)
    return text, reason


def test_a_batch_that_is_done_ends_the_emulator(run: object) -> None:
    text, reason = ended(run, f"printf '@m 0:1\\n{LAST}\\n' > $serial; exec sleep 60")
    assert text.endswith(f"{LAST}\n")
    assert reason == ""


DRAWS = f"""
import os, pty, sys, tty
ours, theirs = pty.openpty()
tty.setraw(theirs)
print('Bochs connected to screen "%s"' % os.ttyname(theirs), flush=True)
for _ in range(100):
    os.write(ours, b"x" * 1000)
open(sys.argv[1], "w").write("@m 0:1\\n{LAST}\\n")
"""


def test_a_screen_that_is_full_is_read(run: object, tmp_path: Path) -> None:
    """It opens a terminal of its own for what it draws, and waits when nobody takes that."""
    program = tmp_path / "draws.py"
    program.write_text(DRAWS)
    text, reason = ended(run, f"exec {sys.executable} {program} $serial")
    assert text.endswith(f"{LAST}\n")
    assert reason == ""


def test_silence_while_it_works_is_a_hang(run: object) -> None:
    text, reason = ended(run, "printf '@m 0:1\\n' > $serial; while :; do :; done")
    assert (text, reason) == ("@m 0:1\n", "hangs")


def test_a_kernel_that_does_not_boot_does_not_start(run: object) -> None:
    assert ended(run, "printf 'GRUB\\n' > $serial; while :; do :; done") == (
        "GRUB\n",
        "does not start",
    )


def test_the_reason_of_a_panic_is_the_emulators(run: object) -> None:
    life = "printf '@m 0:1\\n' > $serial; printf '0[CPU0] >>PANIC<< no such thing\\n' > $log"
    assert ended(run, life)[1] == "the emulator gives up: no such thing"


def test_a_triple_fault_is_named(run: object) -> None:
    life = (
        "printf '@m 0:1\\n' > $serial; printf '0[CPU0] 3rd (13) exception, triple fault\\n' > $log"
    )
    assert ended(run, life)[1] == "triple fault"


def test_a_machine_that_powers_off_too_early_is_noticed(run: object) -> None:
    assert ended(run, "printf '@m 0:1\\n' > $serial")[1] == "powers off early"


def test_a_folder_for_temporary_files_may_have_a_space(
    run: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "a b, c"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    text, reason = ended(run, f"printf '@m 0:1\\n{LAST}\\n' > $serial")
    assert (text, reason) == (f"@m 0:1\n{LAST}\n", "")


@pytest.mark.parametrize("name", ["a$HOME", 'a"b', "a\nb"])
def test_a_file_that_bochs_cannot_name_is_refused(
    run: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))
    with pytest.raises(UnavailableError, match="Bochs takes no such name of a file") as caught:
        ended(run, "")
    assert len(str(caught.value).splitlines()) == 1


# -- what is not installed -------------------------------------------------------------------------


def test_without_grub_its_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(MissingToolError, match="apt-get install grub-common"):
        iso_of({}, "")


def test_without_a_static_busybox_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(linux, "_BUSYBOX", tmp_path / "busybox")
    with pytest.raises(MissingToolError, match="apt-get install busybox-static"):
        linux.disc_with_kvm(b"")


def test_without_apt_the_kernel_cannot_be_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(linux, "FOLDER", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(MissingToolError, match="apt-get is needed to fetch linux-image"):
        linux.kernel()


def test_a_kernel_without_kvm_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linux, "FOLDER", tmp_path)
    boot = tmp_path / "kernel" / "boot"
    boot.mkdir(parents=True)
    (boot / "vmlinuz-1.2").write_bytes(b"")
    with pytest.raises(MissingToolError, match=r"has no irqbypass\.ko, kvm-intel\.ko, kvm\.ko"):
        linux.kernel()


# -- the host --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "nested", "message"),
    [
        (False, "Y", "there is no .*kvm here; try: nvmx-fuzz compare --machine kvm-bochs"),
        (True, None, "kvm_intel is not loaded here"),
        (True, "N", "nesting turned off; try: modprobe kvm_intel nested=1"),
        (True, "Y", ""),
        (True, "1", ""),
    ],
)
def test_a_host_that_cannot_nest_is_told_so(
    device: bool, nested: str | None, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr(host, "NESTED", tmp_path / "nested")
    if device:
        (tmp_path / "kvm").touch()
    if nested is not None:
        (tmp_path / "nested").write_text(f"{nested}\n")
    if not message:
        host.check_host()
        return
    with pytest.raises(MissingError, match=message):
        host.check_host()


def test_the_command_line_says_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(host, "DEVICE", tmp_path / "kvm")
    assert main(["compare", "--machine", "kvm"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["compare", "--machine", "kvm", "--where-possible"]) == 0
    assert capsys.readouterr().out.startswith("nothing compared: there is no ")


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        (known_findings.run, ["--machine", "kvm"], "scripts/kvm --findings: there is no "),
        (trace.run, ["none.scn"], "python -m nvmx_fuzz.boot.trace: none.scn: no such file or directory"),
        (trace.run, [], "Missing argument 'FILE'; try: python -m nvmx_fuzz.boot.trace --help"),
    ],
)  # fmt: skip
def test_commands_that_cannot_run_say_one_line_and_nothing_else(
    command: Callable[[], int],
    arguments: list[str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(host, "DEVICE", tmp_path / "kvm")
    monkeypatch.setattr("sys.argv", ["command", *arguments])
    assert command() == BAD_INPUT
    output, said = capsys.readouterr()
    assert output == ""
    assert says in said
    assert said.count("\n") == 1


# -- the monitor -----------------------------------------------------------------------------------


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_the_monitor_compiles_without_warnings_and_refuses_what_is_no_image(tmp_path: Path) -> None:
    program, image = tmp_path / "vmm", tmp_path / "image"
    command = [
        "cc",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        str(program),
        str(linux.MONITOR_SOURCES[0]),
    ]
    subprocess.run(command, check=True)
    image.write_bytes(bytes(8192))
    done = subprocess.run([str(program), str(image)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, f"%! {image}: Invalid argument\n")
    done = subprocess.run([str(program), "absent"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "%! absent: No such file or directory\n")


# -- images ----------------------------------------------------------------------------------------


def test_an_image_is_written_with_the_numbers_of_its_scenarios(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for name, text in (("good", "L1 enter\nL2 cpuid\n"), ("bad", "outside smi\n")):
        path = tmp_path / f"{name}.scn"
        path.write_text(f"version 1\n{text}")
        names.append(str(path))
    target = tmp_path / "image"
    assert main(["export", "--format", "multiboot", *names, "-o", str(target)]) == 0
    assert target.read_bytes()[:4] == bytes.fromhex("02b0ad1b")
    assert capsys.readouterr().err == f"{names[1]}: left out, smi-while-l1-runs\n#0 {names[0]}\n"


def test_an_image_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.scn"
    path.write_text("version 1\noutside smi\n")
    target = tmp_path / "image"
    assert main(["export", "--format", "multiboot", str(path), "-o", str(target)]) == 2
    assert not target.exists()
    assert "none of the scenarios can be in an image" in capsys.readouterr().err


def test_other_forms_take_one_file() -> None:
    assert main(["export", "--format", "pytest", "a.scn", "b.scn"]) == 2


# -- the text of a serial port ---------------------------------------------------------------------


def serial_text(tmp_path: Path, lines: str) -> str:
    path = tmp_path / "serial.txt"
    path.write_text(lines)
    return str(path)


def printed_line(body: str) -> str:
    return f"{body} *{checksum(body.encode()):x}\r\n"


HEAD = printed_line(
    "@m 0:d8100011e57ed0 1:7f00000016 2:fff9fffe0401e172 3:7fffff00036dff 4:f3ff000011ff 5:20000165 "
    "6:80000021 7:ffffffff 8:2000 9:172fff a:2e b:27bff00000000 c:f0106334041"
)
"""The capability MSRs of a Haswell: among others, no posted interrupts."""


@pytest.mark.parametrize(("reason", "status"), [("a", 0), ("1e", 1)])
def test_what_an_image_printed_elsewhere_is_compared(
    reason: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "x.scn"
    scenario.write_text("version 1\nL1 enter\nL2 cpuid\n")
    line = printed_line(f"#0 x 0:{reason} 6:2 9:16000 a:14800 b:202 c:4093 10:64 z")
    text = serial_text(tmp_path, f"SeaBIOS\r\n{HEAD}{line}")
    assert main(["compare", "--serial", text, str(scenario)]) == status
    assert "bare and serial: 1 scenario compared" in capsys.readouterr().out


def test_a_line_that_was_cut_elsewhere_is_an_incident(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "x.scn"
    scenario.write_text("version 1\nL1 enter\nL2 cpuid\n")
    text = serial_text(tmp_path, f"{HEAD}#0 x 0:a 6:2 9:160")
    assert main(["compare", "--serial", text, str(scenario)]) == 1
    assert "INCIDENT has no whole line in serial.txt" in capsys.readouterr().out


def test_behind_one_that_hangs_nothing_was_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for number in range(3):
        scenario = tmp_path / f"{number}.scn"
        scenario.write_text("version 1\nL1 enter\nL2 cpuid\n")
        names.append(str(scenario))
    line = printed_line("#0 x 0:a 6:2 9:16000 a:14800 b:202 c:4093 10:64 z")
    assert main(["compare", "--serial", serial_text(tmp_path, HEAD + line), *names]) == 1
    shown = capsys.readouterr().out
    assert "INCIDENT hangs (1 time)" in shown
    assert "cannot     1  not-reached" in shown
    ended = HEAD + line + printed_line("$")
    assert main(["compare", "--serial", serial_text(tmp_path, ended), *names]) == 1
    assert "INCIDENT has no whole line in serial.txt (2 times)" in capsys.readouterr().out


def test_what_the_processor_elsewhere_lacks_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenario = tmp_path / "x.scn"
    scenario.write_text(
        "version 1\nconfig posted-interrupts=on virtual-interrupt-delivery=on tpr-shadow=on "
        "acknowledge-interrupt-on-exit=on\nL1 enter\nL2 cpuid\n"
    )
    text = serial_text(tmp_path, HEAD + printed_line("#0 v 0:7 z"))
    assert main(["compare", "--serial", text, str(scenario)]) == 2
    shown = capsys.readouterr()
    assert "cannot     1  not-offered: PIN_BASED 0x80" in shown.out
    assert "nothing was compared" in shown.err


def test_what_a_machine_elsewhere_is_known_for_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """QEMU with KVM has printed it: the interrupt comes before the window."""
    scenario = "corpus/nested_events/interrupt-window-before-pending-interrupt.scn"
    line = printed_line(
        "#0 x 0:1 7:16000 9:16000 a:14800 b:202 c:4093 10:ffffffff 16:ffff0ff0 z 2:20000 i 0:51 1:1002fc 2:2"
    )
    text = serial_text(tmp_path, HEAD + line)
    assert main(["compare", "--serial", text, str(ROOT / scenario)]) == 1
    capsys.readouterr()
    assert main(["compare", "--machine", "kvm", "--serial", text, str(ROOT / scenario)]) == 0
    assert "interrupt before what ranks higher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("SeaBIOS\r\n", "holds no output of an image"),
        (printed_line("! 1"), "the image did not run: the processor has no VMX"),
    ],
)
def test_a_text_without_an_image_is_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--serial", serial_text(tmp_path, text)]) == 2
    assert message in capsys.readouterr().err
