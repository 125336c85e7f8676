"""`nvmx-fuzz run --watch`: a fresh page while the campaign runs, for this machine alone."""

import http.client
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest

from nvmx_fuzz import cli
from nvmx_fuzz.files import BadFile
from nvmx_fuzz.watch import ADDRESS, Watch
from tests.reports import pages
from tests.reports.test_history import START, sample, written

REFRESH = 'http-equiv="refresh"'


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


def ask(url: str, path: str = "/", method: str = "GET", host: str | None = None) -> Answer:
    """Ask the server at *url*; *host* is the name it is called by, if not its own."""
    place = urlsplit(url).netloc
    connection = http.client.HTTPConnection(place, timeout=30)
    try:
        connection.request(method, path, headers={"Host": host or place})
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.headers), answer.read().decode())
    finally:
        connection.close()


def wait_for(url: str, text: str) -> str:
    """Ask until the page says something."""
    for _ in range(600):
        body = ask(url).body
        if text in body:
            return body
        time.sleep(0.1)
    pytest.fail(f"the page does not say {text!r}")


def listening(port: int) -> set[str]:
    """The addresses on which somebody listens on *port*, as the kernel writes them."""
    found = set()
    for table in ("tcp", "tcp6"):
        path = Path("/proc/net") / table
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _slot, local, _remote, state, *_rest = line.split()
            address, _, number = local.rpartition(":")
            if state == "0A" and int(number, 16) == port:
                found.add(address)
    return found


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watch]:
    """A server for a folder in which no campaign has begun."""
    made = Watch(tmp_path, 0)
    made.start()
    yield made
    if made._threads[0].is_alive():
        made._server.asked = float("-inf")
        made.close()


def test_only_this_machine_is_served_and_only_the_page(watch: Watch) -> None:
    port = urlsplit(watch.url).port
    assert port is not None
    if sys.platform == "linux":
        assert listening(port) == {"0100007F"}
    answer = ask(watch.url)
    assert answer.status == 200
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"] == "no-store"
    assert ask(watch.url, "/../../etc/passwd").status == 404
    assert ask(watch.url, "/report.html").status == 404
    assert ask(watch.url, method="POST").status == 501
    assert ask(watch.url, host="evil.example").status == 403
    assert ask(watch.url, host=f"evil.example:{port}").status == 403
    assert ask(watch.url, host=f"localhost:{port}").status == 200
    assert ask(watch.url, method="HEAD").body == ""


def test_page_waits_follows_the_folder_and_ends_without_a_refresh(
    watch: Watch, tmp_path: Path
) -> None:
    waiting = ask(watch.url).body
    pages.check(waiting)
    assert "The campaign begins" in waiting
    assert REFRESH in waiting
    written(tmp_path, {"start": START}, sample(0), sample(1, 12_345))
    running = wait_for(watch.url, "12,345")
    pages.check(running)
    assert REFRESH in running
    written(tmp_path, {"start": START}, sample(0), sample(1, 23_456), {"end": "interrupted"})
    seen: list[str] = []
    ender = threading.Thread(target=watch.close)
    ender.start()
    while ender.is_alive() and not any(REFRESH not in body for body in seen):
        seen.append(ask(watch.url).body)
        time.sleep(0.05)
    ender.join()
    assert REFRESH not in seen[-1]
    assert "23,456" in seen[-1]
    assert (tmp_path / "report.html").read_text() == seen[-1]
    assert watch.problem == ""


def test_a_page_that_cannot_be_made_leaves_the_one_before(watch: Watch, tmp_path: Path) -> None:
    path = written(tmp_path, {"start": START}, sample(0), sample(1, 12_345))
    wait_for(watch.url, "12,345")
    watch._over.set()  # so that nobody else makes the page
    watch._threads[1].join()
    path.write_text("{\n")
    watch._make(refresh=5)
    assert "12,345" in ask(watch.url).body
    assert watch.problem == f"{path}:1: is not a line of JSON"


def test_a_port_that_is_taken_is_refused(tmp_path: Path) -> None:
    with socket.create_server((ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BadFile, match=f"^{ADDRESS}:{port}: address already in use$"):
            Watch(tmp_path, port)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--port", "8000"], "--port is for --watch"),
        (["--watch", "--port", "0"], "invalid value for '--port'"),
        (["--watch", "--port", "99999"], "invalid value for '--port'"),
    ],
)
def test_bad_options_get_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", *arguments, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert line in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("library", ["jinja2", "matplotlib"])
def test_without_a_library_nothing_begins(
    library: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("atheris")
    monkeypatch.setitem(sys.modules, library, None)
    assert cli.main(["run", "--watch", "--out", str(tmp_path / "out")]) == 2
    expected = f"nvmx-fuzz: {library} is not installed; try: pip install -e '.[report]'\n"
    assert capsys.readouterr().err == expected
    assert not (tmp_path / "out").exists()


def test_a_campaign_is_watched_until_it_is_interrupted(tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "nvmx_fuzz.cli", "run", "--l0", "bug1", "--no-seeds"]
    process = subprocess.Popen(
        [*command, "--seed", "3", "--watch", "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        url = re.sub("^watch ", "", lines[1]).strip()
        body = wait_for(url, "EXIT-INFO X3")
        pages.check(body)
        assert REFRESH in body
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 1, rest
    assert "interrupted after" in rest
    last = (out / "report.html").read_text()
    pages.check(last)
    assert "interrupted" in last
    assert REFRESH not in last
