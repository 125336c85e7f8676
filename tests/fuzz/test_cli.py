"""The command line, through real processes."""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nvmx_fuzz import cli
from nvmx_fuzz.codec import decode

SCENARIO = """\
# an interrupt that waits for the entry; the exit comes right after it
version 1
outside  interrupt 0x51
L1       enter
  expect exit EXTERNAL_INTERRUPT
"""
WRONG = SCENARIO.replace("exit EXTERNAL_INTERRUPT", "deliver 0x51")
COMMANDS: tuple[list[str], ...] = (["replay"], ["explain"], ["corpus", "list"], ["corpus", "check"],
            ["corpus", "encode"], ["corpus", "decode"], ["run"], ["corpus"], [])  # fmt: skip


def nvmx(
    *arguments: str | Path, stdin: bytes | None = None, folder: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `nvmx-fuzz` with these arguments."""
    finished = subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", *map(str, arguments)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        cwd=folder,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return subprocess.CompletedProcess(
        finished.args, finished.returncode, finished.stdout.decode(), finished.stderr.decode()
    )


def refused(finished: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal, which exits with 2 and prints nothing else."""
    assert finished.returncode == 2, finished
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("nvmx-fuzz: ")
    return line.removeprefix("nvmx-fuzz: ")


@pytest.fixture
def scn(tmp_path: Path) -> Path:
    """A good scenario as text."""
    path = tmp_path / "waits.scn"
    path.write_text(SCENARIO)
    return path


@pytest.fixture
def data(scn: Path) -> Path:
    """The same as bytes, under a name that says nothing."""
    path = scn.with_name("waits")
    assert nvmx("corpus", "encode", scn, path).returncode == 0
    return path


# -- replay ----------------------------------------------------------------------------------------


def test_replay_says_that_nothing_is_wrong(scn: Path) -> None:
    finished = nvmx("replay", scn)
    assert finished.returncode == 0, finished
    assert finished.stdout == f"{scn}: ok on fixed (2 steps, 1 expectation)\n"


def test_replay_takes_both_forms_and_standard_input(scn: Path, data: Path) -> None:
    for content in (scn.read_bytes(), data.read_bytes()):
        finished = nvmx("replay", "-", stdin=content)
        assert finished.returncode == 0, finished
        assert finished.stdout.startswith("-: ok on fixed (2 steps")


def test_replay_finds_the_violation_of_a_bug_and_names_the_next_command(data: Path) -> None:
    finished = nvmx("replay", "--l0", "bug3", data)
    assert finished.returncode == 1
    assert "violation on bug3" in finished.stdout
    assert "[IMMEDIATE-EXIT O11 no immediate exit requested]" in finished.stdout
    assert finished.stdout.splitlines()[-1] == f"  next: nvmx-fuzz explain --l0 bug3 {data}"


def test_replay_says_which_machine_breaks_an_expectation(scn: Path) -> None:
    scn.write_text(WRONG)
    finished = nvmx("replay", scn)
    assert finished.returncode == 1
    assert "unexpected on fixed" in finished.stdout
    for machine in ("bare", "nested"):
        assert f"  {machine}: line 5: " in finished.stdout
    assert f"next: nvmx-fuzz replay --journal {scn}" in finished.stdout


def test_replay_as_json_tells_everything(scn: Path, data: Path) -> None:
    finished = nvmx("replay", "--json", "--journal", "--l0", "bug3", scn, data)
    assert finished.returncode == 1
    first, second = json.loads(finished.stdout)
    assert first["verdict"] == second["verdict"] == "violation"
    assert first["violations"][0]["step"] == 2
    assert first["expectations"] == 1
    assert first["broken_expectations"][0]["machine"] == "nested"
    assert second["file"] == str(data)
    assert [record["record"] for record in second["journals"]["nested"]][-1] == "end"


def test_journals_stand_side_by_side(data: Path) -> None:
    finished = nvmx("replay", "--journal", "--l0", "bug3", data)
    lines = finished.stdout.splitlines()
    assert any("bare" in line and "nested, L0 bug3" in line for line in lines)
    (different,) = [line for line in lines if "exit EXTERNAL_INTERRUPT" in line]
    assert different.startswith("! ")
    assert different.endswith("| -")


def test_one_bad_file_does_not_hide_the_others(scn: Path) -> None:
    finished = nvmx("replay", scn.parent / "absent", scn)
    assert finished.returncode == 2
    assert ": ok on fixed" in finished.stdout
    assert "absent: no such file or directory" in finished.stderr


# -- explain ---------------------------------------------------------------------------------------


def test_explain_tells_the_story_of_a_violation(data: Path) -> None:
    finished = nvmx("explain", "--l0", "bug3", data)
    assert finished.returncode == 1
    assert finished.stdout.startswith("VIOLATION IMMEDIATE-EXIT O11")
    assert f"replay: nvmx-fuzz replay --l0 bug3 {data}" in finished.stdout


def test_explain_without_a_violation_tells_what_happens(data: Path) -> None:
    finished = nvmx("explain", data)
    assert finished.returncode == 0, finished
    assert "VIOLATION" not in finished.stdout
    assert "EXTERNAL_INTERRUPT" in finished.stdout


def test_explain_as_json(data: Path) -> None:
    finished = nvmx("explain", "--json", "--l0", "bug3", data)
    assert finished.returncode == 1
    assert json.loads(finished.stdout)["finding"]["oracle"] == "IMMEDIATE-EXIT"


def test_explain_refuses_a_violation_that_is_not_there(data: Path) -> None:
    line = refused(nvmx("explain", "--l0", "bug3", "--violation", "9", data))
    assert "fewer than 9 violations" in line


# -- corpus ----------------------------------------------------------------------------------------


def test_encode_and_decode_are_inverse(scn: Path, data: Path) -> None:
    text, again = scn.with_name("again.scn"), scn.with_name("again")
    assert nvmx("corpus", "decode", data, text).returncode == 0
    assert nvmx("corpus", "encode", text, again).returncode == 0
    assert again.read_bytes() == data.read_bytes()


def test_decode_of_text_gives_its_canonical_form_with_expectations(scn: Path) -> None:
    scn.write_text(SCENARIO.replace("outside  interrupt", "outside interrupt"))
    finished = nvmx("corpus", "decode", scn, "-")
    assert finished.returncode == 0
    assert finished.stdout == SCENARIO


def test_list_shows_form_steps_and_comment(scn: Path, data: Path) -> None:
    finished = nvmx("corpus", "list", scn.parent)
    assert finished.returncode == 0
    lines = finished.stdout.splitlines()
    assert lines[0].split() == ["waits", "bytes", "2", "steps"]
    assert lines[1].endswith("2 steps  an interrupt that waits for the entry; the exit comes right"
                             " after it")  # fmt: skip
    rows = json.loads(nvmx("corpus", "list", "--json", scn.parent).stdout)
    assert [row["name"] for row in rows] == [data.name, scn.name]


def test_check_accepts_what_is_as_it_should_be(scn: Path, data: Path) -> None:
    finished = nvmx("corpus", "check", scn.parent, data)
    assert finished.returncode == 0, finished
    assert finished.stdout == "as they should be: 3 of 3 scenarios\n"


def test_check_names_the_line_that_is_not_canonical(scn: Path) -> None:
    scn.write_text(SCENARIO.replace("L1       enter", "L1 enter"))
    finished = nvmx("corpus", "check", scn)
    assert finished.returncode == 2
    assert f"{scn}:4: is not canonical, expected 'L1       enter'" in finished.stderr
    assert finished.stdout == "as they should be: 0 of 1 scenario\n"


def test_check_reports_a_broken_expectation(scn: Path) -> None:
    scn.write_text(WRONG)
    finished = nvmx("corpus", "check", scn)
    assert finished.returncode == 1
    assert "  bare: line 5: " in finished.stdout
    (result,) = json.loads(nvmx("corpus", "check", "--json", scn).stdout)
    assert result["verdict"] == "unexpected"


# -- bad input -------------------------------------------------------------------------------------

BAD_TEXTS = {
    "empty": ("", 1, "the file is empty"),
    "future": ("version 9\n", 1, "made by a newer nvmx-fuzz"),
    "no version": ("L1 enter\n", 1, "the first line must be 'version 1'"),
    "word": (SCENARIO.replace("enter", "entre"), 4, "enter"),
    "cut off": (SCENARIO[: SCENARIO.index("0x51")], 3, "vector"),
    "no page": ("version 1\nL0 drop-page attic\n", 2, "attic"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
@pytest.mark.parametrize("command", ["replay", "explain"])
def test_bad_text_is_refused_with_file_and_line(command: str, kind: str, tmp_path: Path) -> None:
    text, number, words = BAD_TEXTS[kind]
    path = tmp_path / "bad.scn"
    path.write_text(text)
    line = refused(nvmx(command, path))
    assert line.startswith(f"{path}:{number}: ")
    assert words in line


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\x02" + bytes(15), "version 2 was made by a newer nvmx-fuzz"),
        (bytes(1 << 20), "is larger than 262144 bytes"),
        (bytes(2057), "has 2057 bytes, but a scenario has at most 2056"),
    ],
    ids=["future", "1 MiB", "oversized"],
)
def test_bad_bytes_are_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad"
    path.write_bytes(content)
    for command in ("replay", "explain"):
        assert words in refused(nvmx(command, path))
    assert words in refused(nvmx("replay", "-", stdin=content))


def test_corrupt_text_is_refused_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.scn"
    path.write_bytes(SCENARIO.encode().replace(b"enter", b"\xff\xfe"))
    assert refused(nvmx("replay", path)).startswith(f"{path}:4: is not text in UTF-8: byte ")


def test_truncated_bytes_are_still_a_scenario(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-3])
    assert "(1 step)" in nvmx("replay", data).stdout


@pytest.mark.parametrize("command", [["replay"], ["explain"], ["corpus", "check"]])
def test_what_is_no_file_is_refused_at_once(command: list[str], tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, words in (
        (tmp_path / "absent", "no such file or directory"),
        (pipe, "is a named pipe, not a file"),
        (Path("/dev/zero"), "is a device, not a file"),
    ):
        finished = nvmx(*command, path)
        assert finished.returncode == 2
        assert finished.stderr == f"nvmx-fuzz: {path}: {words}\n"


def test_directory_is_refused(tmp_path: Path) -> None:
    assert refused(nvmx("replay", tmp_path)) == f"{tmp_path}: is a directory, not a file"
    assert refused(nvmx("corpus", "encode", tmp_path, tmp_path / "x")).endswith("not a file")
    assert refused(nvmx("corpus", "list", tmp_path / "absent")).endswith("does not exist")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_refused(scn: Path) -> None:
    scn.chmod(0)
    assert refused(nvmx("replay", scn)) == f"{scn}: permission denied"


def test_target_that_cannot_be_written_is_refused(scn: Path) -> None:
    target = scn.parent / "absent" / "out"
    line = refused(nvmx("corpus", "encode", scn, target))
    assert line == f"{target}: no such file or directory"


def test_target_that_is_no_file_is_refused_and_left_alone(scn: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    line = refused(nvmx("corpus", "encode", scn, pipe))
    assert line == f"{pipe}: is a named pipe, not a file; - is standard output"
    assert pipe.is_fifo()
    assert "is a device" in refused(nvmx("corpus", "decode", scn, "/dev/null"))


def test_target_that_is_a_link_stays_one(scn: Path, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert nvmx("corpus", "encode", scn, link).returncode == 0
    assert link.is_symlink()
    assert decode(real.read_bytes()).steps
    assert real.stat().st_mode & 0o777 == 0o640


def test_folder_without_scenarios_is_refused(tmp_path: Path) -> None:
    assert refused(nvmx("corpus", "check", tmp_path)) == f"{tmp_path}: holds no scenarios"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- 2>&-"])
def test_closed_streams_are_no_traceback(scn: Path, closed: str) -> None:
    finished = subprocess.run(
        ["sh", "-c", f'"$0" -m nvmx_fuzz.cli replay "$1" {closed}', sys.executable, scn],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if closed == ">&-":
        assert refused(finished) == "standard output is closed"
    else:
        assert (finished.returncode, finished.stderr) == (0, "")
        assert ": ok on fixed" in finished.stdout


def test_closed_standard_input_cannot_be_read() -> None:
    command = '"$0" -m nvmx_fuzz.cli replay - <&-'
    finished = subprocess.run(
        ["sh", "-c", command, sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused(finished) == "standard input: is closed"


def test_reader_that_leaves_is_no_finding(scn: Path) -> None:
    command = '"$0" -m nvmx_fuzz.cli replay --journal "$1"; echo $? >&2'
    with subprocess.Popen(
        ["sh", "-c", command, sys.executable, scn],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == "2\n"


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--time=0", "'0' is not a time above 0"),
        ("--time=nan", "'nan' is not a time above 0"),
        ("--time=inf", "'inf' is not a time above 0"),
        ("--time=abc", "'abc' is not a number"),
        ("--runs=0", "0 is not in the range x>=1"),
    ],
)
def test_limits_that_limit_nothing_are_refused(option: str, words: str) -> None:
    assert words in refused(nvmx("run", option))


def test_full_disk_leaves_the_old_file(scn: Path) -> None:
    target = scn.with_name("target")
    target.write_bytes(b"old")
    finished = subprocess.run(
        [sys.executable, "-m", "nvmx_fuzz.cli", "corpus", "encode", scn, target],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (16, 16)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused(finished) == f"{target}: file too large"
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in scn.parent.iterdir()) == ["target", "waits.scn"]


def test_full_standard_output_is_one_line(scn: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        finished = subprocess.run(
            [sys.executable, "-m", "nvmx_fuzz.cli", "replay", scn],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert finished.returncode == 2
    assert finished.stderr == "nvmx-fuzz: standard output: no space left on device\n"


# -- usage -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["replay", "explain"])
def test_unknown_l0_is_refused_with_near_names(command: str, scn: Path) -> None:
    line = refused(nvmx(command, "--l0", "bugg3", scn))
    assert line.startswith("there is no L0 called 'bugg3'; did you mean bug3")
    assert line.endswith(f"try: nvmx-fuzz {command} --help")


def test_environment_chooses_the_l0(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVMX_L0", "bug3")
    finished = nvmx("replay", data)
    assert finished.returncode == 1
    assert f"next: nvmx-fuzz explain --l0 bug3 {data}" in finished.stdout
    assert nvmx("replay", "--l0", "fixed", data).returncode == 0
    monkeypatch.setenv("NVMX_L0", "bugg3")
    assert refused(nvmx("replay", data)).startswith("there is no L0 called 'bugg3'")


def test_unknown_words_are_refused_with_the_next_command() -> None:
    assert refused(nvmx("rune")).endswith("try: nvmx-fuzz --help")
    assert refused(nvmx("replay", "--fast")).endswith("try: nvmx-fuzz replay --help")
    assert refused(nvmx("corpus", "chek")).endswith("try: nvmx-fuzz corpus --help")
    assert refused(nvmx("replay")).endswith("try: nvmx-fuzz replay --help")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: list[str]) -> None:
    finished = nvmx(*command, "--help")
    assert finished.returncode == 0
    assert finished.stdout.startswith("Usage: ")
    assert all(len(line) <= 100 for line in finished.stdout.splitlines())


def test_every_command_that_prints_takes_json() -> None:
    for command in COMMANDS[:7]:
        assert "--json" in nvmx(*command, "--help").stdout, command


def test_version_names_the_program_and_its_version() -> None:
    finished = nvmx("--version")
    assert finished.returncode == 0
    assert finished.stdout.startswith("nvmx-fuzz ")


def test_main_returns_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["nonsense"]) == 2
    assert capsys.readouterr().err.startswith("nvmx-fuzz: no such command 'nonsense'")


# -- cost ------------------------------------------------------------------------------------------


def test_command_line_loads_neither_engine_nor_model() -> None:
    code = "import sys; import nvmx_fuzz.cli; print(sorted(sys.modules))"
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    for module in ("atheris", "nvmx_core", "rich", "hypothesis"):
        assert f"'{module}'" not in finished.stdout


def test_pure_commands_load_no_engine() -> None:
    code = (
        "import sys; from nvmx_fuzz import cli; cli.main(['replay', '-']);"
        "print(sorted(sys.modules))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        input="version 1\n",
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "'nvmx_core'" in finished.stdout
    for module in ("atheris", "hypothesis"):
        assert f"'{module}'" not in finished.stdout


def test_replay_starts_quickly(scn: Path) -> None:
    """A few times what Python itself takes; absolute times say more about the machine."""

    def fastest(*command: str | Path) -> float:
        seconds = []
        for _ in range(4):
            start = time.monotonic()
            subprocess.run([sys.executable, *command], capture_output=True, timeout=60, check=True)
            seconds.append(time.monotonic() - start)
        return min(seconds)

    assert fastest("-m", "nvmx_fuzz.cli", "replay", scn) < 10 * fastest("-c", "import re, json")
