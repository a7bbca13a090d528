"""The report of a run that goes on, served to this machine only: GET / and GET /data, to whoever calls it localhost."""

from __future__ import annotations

import json
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from srlm.errors import UserError
from srlm.report import read_all
from srlm.report.folders import watched
from srlm.report.page import page, parts
from srlm.report.text import finite

ADDRESS = "127.0.0.1"
NOT_NOW = b"<!doctype html><meta http-equiv=refresh content=2><p>The folder cannot be read now. Trying again."


def watch(folders: Sequence[str | Path], *, port: int = 0, forecast: str | Path | None = None) -> None:
    """Serve until interrupted."""
    with server(folders, port, forecast) as running:
        print(f"watching at http://{ADDRESS}:{running.server_address[1]}/ (Ctrl-C stops)", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print("\nstopped watching")


def server(folders: Sequence[str | Path], port: int = 0, forecast: str | Path | None = None) -> ThreadingHTTPServer:
    """Bound to the loopback address, not yet running.

    Raises:
        UserError: the port cannot be had, or `forecast` is no diagnosis.
    """
    paths, given = [Path(folder) for folder in folders], None if forecast is None else Path(forecast)
    read_all(paths, given, patient=True)
    try:
        return ThreadingHTTPServer((ADDRESS, port), _handler(paths, given))
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port} cannot be served ({error}): choose another, or leave it out") from error


def _handler(folders: list[Path], forecast: Path | None) -> type[BaseHTTPRequestHandler]:
    def version() -> str:
        return f"{hash(tuple(file for folder in folders for file in watched(folder))):x}"

    def whole() -> bytes:
        now = version()  # before reading: what changes meanwhile is fetched later
        return page(read_all(folders, forecast, patient=True), now).encode(errors="replace")

    def changed(known: str) -> bytes | None:
        now = version()
        if now == known:
            return None
        made = parts(read_all(folders, forecast, patient=True))
        return json.dumps(made | {"version": now, "data": finite(made["data"])}, allow_nan=False).encode()

    class Handler(BaseHTTPRequestHandler):
        """Methods other than GET are refused by the base class."""

        server_version, sys_version = "srlm", ""
        timeout = 30

        def do_GET(self) -> None:
            port = self.server.server_address[1]  # type: ignore[index]
            mine = {name + end for name in ("localhost", ADDRESS) for end in ("", f":{port}")}
            if self.headers.get("Host", "").lower() not in mine:  # a foreign name that leads here: DNS rebinding
                return self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"ask for localhost\n")
            try:
                url = urlsplit(self.path)
            except ValueError:  # such as http://[x
                return self._answer(HTTPStatus.BAD_REQUEST, "text/plain", b"ask for /\n")
            try:
                if url.path == "/":
                    return self._answer(HTTPStatus.OK, "text/html", whole())
                if url.path == "/data":
                    fresh = changed(parse_qs(url.query).get("version", [""])[0])
                    if fresh is None:
                        return self._answer(HTTPStatus.NO_CONTENT, "application/json", b"")
                    return self._answer(HTTPStatus.OK, "application/json", fresh)
            except ConnectionError:  # the browser has left
                return None
            except Exception:  # a folder in pieces: the page asks again
                return self._answer(HTTPStatus.SERVICE_UNAVAILABLE, "text/html", NOT_NOW)
            return self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is only /\n")

        def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.send_header("X-Frame-Options", "DENY")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """The terminal belongs to the run."""

    return Handler
