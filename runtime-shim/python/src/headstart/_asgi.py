"""ASGI 3.0 (asgi.readthedocs.io) over the standard library: one event loop, one request at a time per connection."""

from __future__ import annotations

import asyncio
import socket
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Awaitable, Callable, Dict, Optional
from urllib.parse import unquote

from ._wire import HeadstartError

Event = Dict[str, Any]
App = Callable[[Event, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]]

_ASGI = {"version": "3.0", "spec_version": "2.3"}
_CHUNK = 65536
# In seconds, as for WSGI: a client that sends or reads nothing does not occupy its place for ever.
_TIMEOUT = 60


class Loop:
    """The application's event loop, in a thread of its own, from its startup to its shutdown."""

    def __init__(self, application: App) -> None:
        self.application = application
        self.loop = asyncio.new_event_loop()
        self._orders: "asyncio.Queue[Event]"
        self._answer: "asyncio.Queue[Event]"
        self._lifespan: Optional["asyncio.Task[None]"] = None

    def __enter__(self) -> "Loop":
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.run(self._startup())
        return self

    def __exit__(self, *_: Any) -> None:
        self.run(self._shutdown())
        self.loop.call_soon_threadsafe(self.loop.stop)

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    async def _startup(self) -> None:
        # Made here, because they belong to the loop.
        self._orders, self._answer = asyncio.Queue(), asyncio.Queue()
        await self._orders.put({"type": "lifespan.startup"})
        self._lifespan = self.loop.create_task(self._live())
        answer = await self._answer.get()
        if answer["type"] == "lifespan.startup.failed":
            raise HeadstartError(f"the application does not start: {answer.get('message', '')}")

    async def _live(self) -> None:
        try:
            await self.application({"type": "lifespan", "asgi": _ASGI}, self._orders.get, self._answer.put)
        except Exception:
            pass  # as the specification says, such an application has no lifespan
        await self._answer.put({"type": "none"})

    async def _shutdown(self) -> None:
        if self._lifespan is not None and not self._lifespan.done():
            await self._orders.put({"type": "lifespan.shutdown"})
            await self._answer.get()


class _Handler(BaseHTTPRequestHandler):
    timeout = _TIMEOUT
    protocol_version = "HTTP/1.1"
    loop: Loop

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the agent reports times

    def handle(self) -> None:
        self.close_connection = True
        self.raw_requestline = self.rfile.readline(_CHUNK + 1)
        if len(self.raw_requestline) > _CHUNK:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_URI_TOO_LONG)
        elif self.raw_requestline and self.parse_request():
            self.close_connection = True
            self.loop.run(self._exchange())

    async def _exchange(self) -> None:
        self._started = self._ended = False
        self._over = asyncio.Event()
        try:
            self._body, self._chunk = self._length(), 0
            await self.loop.application(self._scope(), self._receive, self._send)
        except _BadRequest:
            self.send_error(HTTPStatus.BAD_REQUEST)
        except Exception as error:
            if not self._started:
                self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR)
            raise HeadstartError(f"the application failed: {error!r}") from error
        finally:
            self._over.set()

    def _scope(self) -> Event:
        path, _, query = self.path.partition("?")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": self.request_version.rpartition("/")[2],
            "method": self.command,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()
            ],
            "client": self.client_address[:2],
            "server": self.connection.getsockname()[:2],
        }

    def _length(self) -> Optional[int]:
        """Length of the body in bytes; None for a body in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return None
        length = self.headers.get("Content-Length", "0")
        # int() also accepts signs and underscores; RFC 9110, section 8.6, allows digits only.
        if not (length.isascii() and length.isdigit()):
            raise _BadRequest
        return int(length)

    async def _receive(self) -> Event:
        if self._body == 0:
            # The application has the whole body, so the next event is the end.
            if self._ended:
                await self._over.wait()
                return {"type": "http.disconnect"}
            self._ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        body = await asyncio.to_thread(self._read)
        self._ended = self._body == 0
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    def _read(self) -> bytes:
        if self._body is not None:
            part = self.rfile.read1(min(self._body, _CHUNK))  # type: ignore[attr-defined]
            if not part:
                raise _BadRequest
            self._body -= len(part)
            return bytes(part)
        if self._chunk == 0:
            size = self.rfile.readline(_CHUNK).partition(b";")[0].strip()
            if not size or size.strip(b"0123456789abcdefABCDEF"):
                raise _BadRequest
            self._chunk = int(size, 16)
            if self._chunk == 0:
                while self.rfile.readline(_CHUNK) not in (b"\r\n", b"\n", b""):
                    pass
                self._body = 0
                return b""
        # A chunk may have any size; read a part of it at a time.
        part = bytes(self.rfile.read1(min(self._chunk, _CHUNK)))  # type: ignore[attr-defined]
        self._chunk -= len(part)
        if not part or (self._chunk == 0 and self.rfile.readline(_CHUNK) != b"\r\n"):
            raise _BadRequest
        return part

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._started = True
            self.send_response_only(event["status"])
            for name, value in event.get("headers", ()):
                if bytes(name).lower() != b"connection":
                    self.send_header(bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
            # A body of unknown length ends with the connection (RFC 9112, section 6.3).
            self.send_header("Connection", "close")
            self.end_headers()
        elif event["type"] == "http.response.body":
            body = bytes(event.get("body", b""))
            if body and self.command != "HEAD":
                await asyncio.to_thread(self.wfile.write, body)
            if not event.get("more_body", False):
                self._over.set()


class _BadRequest(Exception):
    """The client sent an invalid request."""


def handler(loop: Loop) -> Callable[[socket.socket, Any], None]:
    """The handler for :meth:`Function.serve_connections`."""
    bound = type("Handler", (_Handler,), {"loop": loop})
    return lambda connection, address: bound(connection, address, None)  # type: ignore[arg-type,return-value]
