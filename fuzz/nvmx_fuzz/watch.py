"""`nvmx-fuzz run --watch`: the report of a running campaign, made anew again and again and served here.

A thread makes the page from the output folder, as `nvmx-fuzz report` does, and writes it there; another one
serves the newest page on 127.0.0.1. Neither touches the campaign: what goes wrong here is told at its end.
The page asks for itself every few seconds. When the campaign is over whoever looks gets the last page, which
does not, before the server goes.
"""

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

from nvmx_fuzz.campaign_report import PAGE, ReportMaker
from nvmx_fuzz.files import BadFile, write_whole
from nvmx_fuzz.pages import page

ADDRESS: Final = "127.0.0.1"
"""Reports are nobody else's business: no other address is ever listened on."""

REFRESH_SECONDS: Final = 5
_SHARE: Final = 10
"""Making the page takes at most one part in so many of the time, unless it gets too old by that."""
_PAUSE_MAX: Final = 15
_SURVEY_SECONDS: Final = 1.0
"""A large corpus is looked at in parts, so that the first page comes soon."""
_SOON: Final = 1
_LOOKING_SECONDS: Final = 3 * REFRESH_SECONDS
_CLIENT_SECONDS: Final = 10
_POLL: Final = 0.1

_HEADERS: Final = (
    ("Content-Type", "text/html; charset=utf-8"),
    ("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; img-src data:"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
)


class _Server(ThreadingHTTPServer):
    """Serves one page; ``asked`` is when somebody last got it, ``last`` that it is the last one."""

    daemon_threads = True

    def __init__(self, port: int, html: bytes) -> None:
        self.html = html
        self.asked = float("-inf")
        self.is_last = False
        self.last_was_sent = False
        super().__init__((ADDRESS, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:
        """Send the page."""
        self._answer(with_page=True)

    def do_HEAD(self) -> None:
        """Send what comes before the page."""
        self._answer(with_page=False)

    def _answer(self, *, with_page: bool) -> None:
        server = self.server
        assert isinstance(server, _Server)
        # A page of somebody else can give its own name to this address; ours goes by these two only.
        host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
        if host not in {ADDRESS, "localhost"}:
            self.send_error(HTTPStatus.FORBIDDEN)
            return
        if self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        is_last, html = server.is_last, server.html
        self.send_response(HTTPStatus.OK)
        for name, value in _HEADERS:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(html)))
        self.end_headers()
        if with_page:
            self.wfile.write(html)
            server.asked = time.monotonic()
            server.last_was_sent = is_last

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base
        """Say nothing: the terminal is the campaign's."""


class Watch:
    """The page of one campaign while it runs.

    Attributes:
        url: where it is.
        problem: why the newest page could not be made, or "".
    """

    def __init__(self, folder: Path, port: int) -> None:
        """Listen on *port* (0: one that is free) for the campaign in *folder*.

        Raises BadFile when the port cannot be had, MissingLibraryError.
        """
        self.problem = ""
        self._folder: Final = folder
        self._maker: Final = ReportMaker(folder, _SURVEY_SECONDS)
        waiting = page("waiting.html", folder=str(folder), refresh=_SOON)
        try:
            self._server: Final = _Server(port, waiting.encode())
        except OSError as error:
            raise BadFile(f"{ADDRESS}:{port}", (error.strerror or str(error)).lower()) from None
        self.url: Final = f"http://{ADDRESS}:{self._server.server_port}/"
        self._over: Final = threading.Event()
        self._threads: Final = [
            threading.Thread(target=self._server.serve_forever, args=(_POLL,), daemon=True),
            threading.Thread(target=self._keep_fresh, daemon=True),
        ]

    def start(self) -> None:
        """Begin to serve."""
        for thread in self._threads:
            thread.start()

    def close(self, may_wait: Callable[[], bool] = lambda: True) -> None:
        """Make the last page and end, after whoever looks has got it or *may_wait* says no."""
        self._over.set()
        serving, making = self._threads
        making.join()
        self._make(refresh=0)
        self._server.is_last = True
        now = time.monotonic()
        if now - self._server.asked < _LOOKING_SECONDS:
            until = now + REFRESH_SECONDS + _SOON
            while time.monotonic() < until and may_wait() and not self._server.last_was_sent:
                time.sleep(_POLL)
        self._server.shutdown()
        serving.join()
        self._server.server_close()

    def _keep_fresh(self) -> None:
        pause: float = _SOON
        while not self._over.wait(pause):
            started = time.monotonic()
            self._make(refresh=REFRESH_SECONDS)
            took = time.monotonic() - started
            pause = max(_SOON if self.problem else REFRESH_SECONDS, min(_SHARE * took, _PAUSE_MAX))

    def _make(self, refresh: int) -> None:
        """Make the page; what goes wrong leaves the one before."""
        try:
            html = self._maker.html(refresh=refresh).encode()
            self._server.html = html
            write_whole(self._folder / PAGE, html)
            self.problem = ""
        except BadFile as error:
            self.problem = str(error)
        except Exception as error:  # noqa: BLE001 - a campaign does not end because of its picture
            self.problem = f"the report could not be made: {error!r} (our own bug)"
