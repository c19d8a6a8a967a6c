"""WSGI over the standard library's server, one request at a time."""

from __future__ import annotations

import io
import socket
import time
from http import HTTPStatus
from typing import Any, BinaryIO, Callable, Dict, Optional
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler

from ._http import CONTINUE, LINE_MAX, LINGER, PART_MAX, TRAILERS_MAX
from ._http import BadRequest, body_length, chunk_length, expects_continue
from ._serve import CLIENT_WAIT

# Bytes of a body in chunks: in all, and of that in memory. The rest is in a file in the directory for temporary files.
_CHUNKED_MAX = 1 << 30
_CHUNKED_MEMORY = 1 << 20


class _Server:
    """The part of a server that its request handler uses."""

    def __init__(self, name: str, port: int, application: Callable[..., Any]) -> None:
        self.application = application
        self.base_environ: Dict[str, str] = {
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REMOTE_HOST": "",
            "CONTENT_LENGTH": "",
            "SCRIPT_NAME": "",
        }


class _Response(ServerHandler):
    wsgi_multithread = True
    http_version = "1.1"

    def cleanup_headers(self) -> None:
        super().cleanup_headers()
        # A body of unknown length ends with the connection (RFC 9112, section 6.3).
        self.headers["Connection"] = "close"  # type: ignore[index]


class _Body(io.RawIOBase):
    """A body of known length."""

    def __init__(self, source: Any, left: int, before: Callable[[], None]) -> None:
        self._source, self.left, self._before = source, left, before

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self.left == 0:
            return 0
        self._before()
        part = self._source.read1(min(len(buffer), self.left))
        if not part:
            raise ConnectionError("the client left before the end of its request")
        self.left -= len(part)
        buffer[: len(part)] = part
        return len(part)


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_WAIT  # type: ignore[assignment]
    # The head of an answer leaves as one, with the first part of its body.
    wbufsize = -1
    disable_nagle_algorithm = True
    _body: Optional[_Body] = None

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the agent reports times

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(LINE_MAX + 1)
        if len(self.raw_requestline) > LINE_MAX:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
            return self._linger()
        if not self.raw_requestline:
            return
        if not self.parse_request():
            return self._linger()
        # In the environment "_" is also what becomes of "-": such a header could pass for another one.
        for name in [name for name in self.headers if "_" in name]:
            del self.headers[name]
        try:
            body = self._receive()
        except BadRequest as error:
            self.send_error(error.status)
            return self._linger()
        handler = _Response(body, self.wfile, self.get_stderr(), self.get_environ())  # type: ignore[arg-type]
        handler.request_handler = self  # type: ignore[attr-defined]
        handler.run(self.server.application)  # type: ignore[attr-defined]
        if self._body is not None and self._body.left:
            self._linger()

    def _receive(self) -> BinaryIO:
        """The body as the application reads it."""
        length = body_length(self.headers, self.request_version)
        self._expected = expects_continue(self.headers, self.request_version)
        if length is None:
            return self._unchunk()
        self._body = _Body(self.rfile, length, self._continue)
        return io.BufferedReader(self._body, PART_MAX)

    def _continue(self) -> None:
        """Requests the body from a client that waits with it."""
        if self._expected:
            self._expected = False
            self.connection.sendall(CONTINUE)

    def _unchunk(self) -> BinaryIO:
        """Reads the whole body: WSGI has no body of unknown length, and most frameworks take it for an empty one."""
        from tempfile import SpooledTemporaryFile

        self._continue()
        body = SpooledTemporaryFile(_CHUNKED_MEMORY)
        length = 0
        while left := chunk_length(self.rfile.readline(LINE_MAX)):
            length += left
            if length > _CHUNKED_MAX:
                raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            while left:
                part = self.rfile.read1(min(left, PART_MAX))  # type: ignore[attr-defined]
                if not part:
                    raise BadRequest
                left -= len(part)
                try:
                    body.write(part)
                except OSError:  # no space is left
                    raise BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE) from None
            if self.rfile.readline(3) != b"\r\n":
                raise BadRequest
        for _ in range(TRAILERS_MAX):
            if self.rfile.readline(LINE_MAX) in (b"\r\n", b"\n", b""):
                break
        del self.headers["Transfer-Encoding"]
        self.headers["Content-Length"] = str(length)
        body.seek(0)
        return body  # type: ignore[return-value]

    def _linger(self) -> None:
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + LINGER
            while (left := deadline - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(PART_MAX):
                    break
        except OSError:
            pass  # the client has gone


def handler(function: Any, application: Callable[..., Any]) -> Callable[[socket.socket, Any], None]:
    """The handler for :meth:`Function.serve_connections`."""
    host, port = function.listener().getsockname()[:2]
    server = _Server(host, port, application)

    def serve(connection: socket.socket, address: Any) -> None:
        _Handler(connection, address, server)  # type: ignore[arg-type]

    return serve
