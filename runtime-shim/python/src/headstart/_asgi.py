"""ASGI 3.0 (asgi.readthedocs.io) over the standard library: one event loop, one request for each connection."""

from __future__ import annotations

import asyncio
import io
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, Awaitable, Callable, Dict, Optional, Set
from urllib.parse import unquote

from ._http import CONTINUE, LINE_MAX, LINGER, PART_MAX, TRAILERS_MAX
from ._http import BadRequest, body_length, chunk_length, expects_continue
from ._serve import CLIENT_WAIT, Client, conversation, start_thread
from ._wire import HeadstartError

Event = Dict[str, Any]
App = Callable[[Event, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]]

_ASGI = {"version": "3.0", "spec_version": "2.3"}
# Bytes of the head of a request.
_HEAD_MAX = 4 * LINE_MAX


class Loop:
    """The application's event loop, in a thread of its own, from its startup to its shutdown."""

    def __init__(self, function: Any, application: App) -> None:
        self.application = application
        self._function = function
        self._loop = asyncio.new_event_loop()
        self._orders: "asyncio.Queue[Event]"
        self._answer: "asyncio.Queue[Event]"
        self._lifespan: Optional["asyncio.Task[None]"] = None
        self._conversations: "Set[asyncio.Task[None]]" = set()

    def __enter__(self) -> "Loop":
        start_thread(self._loop.run_forever, name="headstart-asgi")
        self._run(self._startup())
        return self

    def __exit__(self, *_: Any) -> None:
        self._run(self._shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)

    def put(self, client: Client) -> None:
        """Serves this client."""
        self._loop.call_soon_threadsafe(self._begin, client)

    def _begin(self, client: Client) -> None:
        task = self._loop.create_task(self._converse(client))
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    async def _converse(self, client: Client) -> None:
        with conversation(self._function, client):
            client.socket.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=client.socket, limit=LINE_MAX)
            # So that drain() waits until everything is in the kernel.
            writer.transport.set_write_buffer_limits(0)
            try:
                await _Exchange(self.application, client, reader, writer).run()
            finally:
                # Not close(): it would wait for a client that does not read.
                writer.transport.abort()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _startup(self) -> None:
        # Made here, because they belong to the loop.
        self._orders, self._answer = asyncio.Queue(), asyncio.Queue()
        await self._orders.put({"type": "lifespan.startup"})
        self._lifespan = self._loop.create_task(self._live())
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


class _Head(BaseHTTPRequestHandler):
    """The standard library's parser of a request's head, and what it writes."""

    protocol_version = "HTTP/1.1"

    def __init__(self, head: bytes) -> None:
        self.rfile, self.wfile = io.BytesIO(head), io.BytesIO()  # type: ignore[assignment]
        self.requestline = self.request_version = self.command = ""
        self.raw_requestline = self.rfile.readline()

    def handle_expect_100(self) -> bool:
        return True  # the application reads the body, or does not

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the agent reports times

    def written(self) -> bytes:
        written, self.wfile = self.wfile.getvalue(), io.BytesIO()  # type: ignore[attr-defined]
        return bytes(written)


class _Exchange:
    """One request and its response."""

    def __init__(
        self, application: App, client: Client, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._application, self._client, self._reader, self._writer = application, client, reader, writer
        self._sent = self._ended = self._expected = False
        self._over = asyncio.Event()
        # Bytes of the body that are not read yet; None for a body in chunks, with those of its chunk.
        self._left: Optional[int] = None
        self._chunk = 0

    async def run(self) -> None:
        text = await self._receive_head()
        if not text:
            return
        self._head = head = _Head(text)
        try:
            if len(head.raw_requestline) > LINE_MAX:
                raise BadRequest(HTTPStatus.REQUEST_URI_TOO_LONG)
            if not text.endswith((b"\n\r\n", b"\n\n")):
                raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            if head.parse_request():
                self._left = body_length(head.headers, head.request_version)
                self._expected = expects_continue(head.headers, head.request_version)
                await self._application(self._scope(), self._receive, self._send)
                if not self._sent:
                    raise HeadstartError("it sent no response")
        except BadRequest as error:
            self._refuse(error.status)
        except Exception as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR)
            raise HeadstartError(f"the application failed: {error!r}") from error
        finally:
            self._over.set()
            await self._write(head.written())
            if self._left != 0:
                await self._linger()

    async def _receive_head(self) -> bytes:
        """Everything up to the blank line, if it comes soon enough."""
        head = b""
        while len(head) <= _HEAD_MAX:
            line = await self._line()
            head += line
            if line in (b"\r\n", b"\n") or not line.endswith(b"\n"):
                break
        return head

    async def _line(self) -> bytes:
        try:
            return await asyncio.wait_for(self._reader.readuntil(b"\n"), CLIENT_WAIT)
        except asyncio.LimitOverrunError:
            return await self._reader.read(LINE_MAX + 1)
        except asyncio.IncompleteReadError as error:
            return error.partial

    def _scope(self) -> Event:
        head = self._head
        path, _, query = head.path.partition("?")
        return {
            "type": "http",
            "asgi": _ASGI,
            "http_version": head.request_version.rpartition("/")[2],
            "method": head.command,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in head.headers.items()
            ],
            "client": self._client.address[:2],
            "server": self._client.socket.getsockname()[:2],
        }

    async def _receive(self) -> Event:
        if self._left == 0:
            # The application has the whole body, so the next event is the end.
            if self._ended:
                await self._over.wait()
                return {"type": "http.disconnect"}
            self._ended = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._expected:
            self._expected = False
            await self._write(CONTINUE)
        body = await self._part()
        self._ended = self._left == 0
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    async def _part(self) -> bytes:
        if self._left is not None:
            part = await self._read(self._left)
            self._left -= len(part)
            return part
        if self._chunk == 0:
            self._chunk = chunk_length(await self._line())
            if self._chunk == 0:
                for _ in range(TRAILERS_MAX):
                    if await self._line() in (b"\r\n", b"\n", b""):
                        break
                self._left = 0
                return b""
        # A chunk may have any size; read a part of it at a time.
        part = await self._read(self._chunk)
        self._chunk -= len(part)
        if self._chunk == 0 and await self._line() != b"\r\n":
            raise BadRequest
        return part

    async def _read(self, most: int) -> bytes:
        part = await asyncio.wait_for(self._reader.read(min(most, PART_MAX)), CLIENT_WAIT)
        if not part:
            raise BadRequest
        return part

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._head.send_response_only(event["status"])
            for name, value in event.get("headers", ()):
                if bytes(name).lower() != b"connection":
                    self._head.send_header(bytes(name).decode("latin-1"), bytes(value).decode("latin-1"))
            # A body of unknown length ends with the connection (RFC 9112, section 6.3).
            self._head.send_header("Connection", "close")
            self._head.end_headers()
        elif event["type"] == "http.response.body":
            self._sent = True
            body = bytes(event.get("body", b""))
            await self._write(self._head.written() + (body if self._head.command != "HEAD" else b""))
            if not event.get("more_body", False):
                self._over.set()

    def _refuse(self, status: HTTPStatus) -> None:
        if not self._sent:
            self._head.written()  # a response that was begun
            self._head.send_error(status)

    async def _write(self, part: bytes) -> None:
        if part:
            self._writer.write(part)
            await asyncio.wait_for(self._writer.drain(), CLIENT_WAIT)

    async def _linger(self) -> None:
        self._writer.write_eof()
        try:
            await asyncio.wait_for(self._discard(), LINGER)
        except (asyncio.TimeoutError, OSError):
            pass  # the client sends on, or has gone

    async def _discard(self) -> None:
        while await self._reader.read(PART_MAX):
            pass
