"""The handle that a function works with."""

from __future__ import annotations

import os
import queue
import select
import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

from . import _serve, _wire
from ._places import Places
from ._serve import report
from ._wire import Channel, HeadstartError

SHIM = "headstart-python/0.1.0"

# Longest wait for the lease, in seconds. Normally it is in the control socket before the process exists.
LEASE_WAIT = 10.0
# Longest wait for a backend connection, in seconds.
BACKEND_WAIT = 10.0
# Longest time for requests in flight after SIGTERM, in seconds; less than the 10 s after which a container is killed.
DRAIN_WAIT = 8.0

Hook = Callable[[], None]
Handler = Callable[[socket.socket, Any], None]


class Injected(NamedTuple):
    """A connection that the agent made and logged in."""

    #: Connected and non-blocking. Call ``setblocking(True)`` for a driver that blocks.
    socket: socket.socket
    #: What a driver learns when it logs in: ``kind``, and the fields of that kind.
    session: Dict[str, Any]
    #: The time from which it is too old for use after a thaw, in nanoseconds of ``time.monotonic_ns()``; None for never.
    expires_ns: Optional[int]


class _BackendSlot:
    """One backend: the connection for the next call, if there is one."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.changed = threading.Condition()
        self.state: str = "taken"
        self.injected: Optional[Injected] = None
        self.reason = ""

    def set(self, grant: Dict[str, Any], descriptor: Optional[int]) -> None:
        with self.changed:
            status, grant = _wire.variant(grant["status"])
            # Without keys in the grant the kernel encrypts, and the socket carries plaintext.
            if status == "ready" and (grant.get("tls") or {}).get("keys") is not None:
                if descriptor is not None:
                    os.close(descriptor)
                reason = "this module cannot continue a TLS session: load the kernel's TLS (modprobe tls), or remove tls_hand_over"
                self.state, self.reason = "failed", reason
            elif status == "ready" and descriptor is not None:
                sock = socket.socket(fileno=descriptor)
                sock.setblocking(False)
                kind, session = _wire.variant(grant["session"])
                self.injected = Injected(sock, {"kind": kind, **session}, grant.get("expires_ns"))
                self.state = "ready"
            elif status == "pending":
                self.state = "waiting"
            else:
                self.state, self.reason = "failed", str(grant.get("reason", "no descriptor came"))
            self.changed.notify_all()


class Backend:
    """One backend of a function. Each call returns another connection; the first one comes with the lease."""

    def __init__(self, function: "Function", name: str) -> None:
        self._function = function
        #: The backend's name in the agent's configuration.
        self.name = name

    def socket(self, wait: float = BACKEND_WAIT) -> Injected:
        """The bare connection, for a protocol of your own."""
        return self._function._take(self.name, wait)

    def _returned(self) -> None:
        """Reports to the agent that a connection of this backend is closed."""
        self._function._tell("returned", {"backend": self.name})

    def pg8000(self, wait: float = BACKEND_WAIT, **arguments: Any) -> Any:
        """A ``pg8000.dbapi.Connection`` (1.31 or later) to a PostgreSQL backend, with further `arguments` of the driver."""
        from . import _drivers

        return _drivers.pg8000(self, wait, arguments)

    def pymysql(self, wait: float = BACKEND_WAIT, **arguments: Any) -> Any:
        """A ``pymysql.Connection`` to a MariaDB or MySQL backend, with further `arguments` of the driver."""
        from . import _drivers

        return _drivers.pymysql(self, wait, arguments)

    def redis(self, wait: float = BACKEND_WAIT, **arguments: Any) -> Any:
        """A ``redis.Redis`` in RESP2 whose pool takes its connections from the agent, with further `arguments` of the pool.

        The pool requests another connection when it has lost one, or when several are in use at a time.
        """
        from . import _drivers

        return _drivers.redis(self, wait, arguments)


class Function:
    """An attached function: its listening socket, its backends, its agent."""

    def __init__(self, channel: Optional[Channel], lease: Optional[_wire.Received]) -> None:
        self._channel = channel
        self._slots: Dict[str, _BackendSlot] = {}
        self._freeze_hooks: List[Hook] = []
        self._thaw_hooks: List[Hook] = []
        self._listener: Optional[socket.socket] = None
        self._reported_ready = self._reported_served = self._gone = False
        self._once = threading.Lock()
        #: The function's name in the agent's configuration; None without an agent.
        self.name: Optional[str] = None
        #: This instance's identifier in the agent's logs; None without an agent.
        self.instance: Optional[str] = None
        #: Client connections that may be open at a time; None for any number.
        self.concurrency: Optional[int] = None
        page = None
        if channel is not None and lease is not None:
            body, descriptors = lease.body, iter(lease.descriptors)
            self.name, self.instance = body["function"], body["instance"]
            self.concurrency = body.get("concurrency")
            self._listener = socket.socket(fileno=next(descriptors))
            # The agent and other instances share it, and rely on it: never make it blocking.
            self._listener.setblocking(False)
            page = next(descriptors)
            for grant in body["backends"]:
                slot = self._slots[grant["backend"]] = _BackendSlot()
                ready = _wire.variant(grant["status"])[0] == "ready"
                slot.set(grant, next(descriptors, None) if ready else None)
        self._places = Places(page, self.concurrency)
        if channel is not None:
            orders: "queue.Queue[Optional[_wire.Received]]" = queue.Queue()
            _serve.start_thread(self._read, orders, name="headstart")
            _serve.start_thread(self._follow_orders, orders, name="headstart-freeze")

    # The interface of the function.

    def backend(self, name: str) -> Backend:
        """The backend with this name. It does nothing until you request a connection."""
        return Backend(self, name)

    def listener(self) -> socket.socket:
        """The listening socket, for a server of your own.

        It is non-blocking and must stay so, because other instances accept from it too. Hold a :meth:`track` for each
        connection, respect :attr:`concurrency`, and call :meth:`ready` immediately before you accept.
        """
        if self._listener is None:
            self._listener = _listen_alone()
        return self._listener

    def counting_listener(self) -> socket.socket:
        """The listening socket for a server that accepts by itself, as uvicorn, hypercorn and waitress do.

        It does the rest: it counts each connection until it is closed, accepts no more than :attr:`concurrency` allows and
        none during a freeze, and calls :meth:`ready` when the server calls its ``listen``. The server must use this very
        object and not only its number, so no uvloop.
        """
        from ._listener import CountingListener

        return CountingListener(self.listener(), self._places, self.ready)

    @contextmanager
    def track(self) -> Iterator[None]:
        """Counts one client connection as open, for a server of your own."""
        self._places.count()
        self._places.open()
        try:
            yield
        finally:
            self._places.closed()

    def on_freeze(self, hook: Hook) -> None:
        """Runs `hook` before a freeze, when no client is connected. If it raises, the instance is not frozen."""
        self._freeze_hooks.append(hook)

    def on_thaw(self, hook: Hook) -> None:
        """Runs `hook` after a thaw, before the instance accepts again."""
        self._thaw_hooks.append(hook)

    def ready(self) -> None:
        """Reports to the agent that initialisation is complete. The serving methods call it."""
        with self._once:
            first, self._reported_ready = not self._reported_ready, True
        if first:
            self._tell("ready", {"ready_ns": time.monotonic_ns()})

    def served(self, accept_ns: int, first_response_ns: int) -> None:
        """Reports to the agent that the first response is sent. The serving methods call it."""
        with self._once:
            first, self._reported_served = not self._reported_served, True
        if first:
            self._tell("served", {"accept_ns": accept_ns, "first_response_ns": first_response_ns})

    def serve_connections(self, handler: Handler, threads: Optional[int] = None) -> None:
        """Calls ``handler(socket, address)`` for every client, in one of so many `threads`, until SIGTERM.

        Without `threads` there are as many as :attr:`concurrency` allows, or 40; further clients wait until one is free.
        Call it in the main thread, which receives the signal. On SIGTERM it stops accepting, and waits for the handlers
        that run. The socket is blocking; it is closed when the handler returns.
        """
        self._serve_in_threads(handler, threads, first_bytes=False)

    def serve_wsgi(self, application: Callable[..., Any], threads: Optional[int] = None) -> None:
        """Serves a WSGI application (PEP 3333) like :meth:`serve_connections`: one request for each connection.

        A client occupies a thread from the first byte of its request on.
        """
        from ._wsgi import handler

        self._serve_in_threads(handler(self, application), threads, first_bytes=True)

    def serve_asgi(self, application: Callable[..., Any]) -> None:
        """Serves an ASGI 3.0 application over HTTP, like :meth:`serve_wsgi`; its coroutines share one event loop.

        The function is ready when the application's lifespan has started. For WebSockets, HTTP/2 and keep-alive see
        :meth:`counting_listener`.
        """
        from ._asgi import Loop

        with Loop(self, application) as loop:
            self._accept(loop.put, first_bytes=True)

    # The implementation.

    def _serve_in_threads(self, handler: Handler, threads: Optional[int], first_bytes: bool) -> None:
        def serve(client: _serve.Client) -> None:
            with _serve.conversation(self, client):
                client.socket.setblocking(True)
                handler(client.socket, client.address)

        pool = _serve.Threads(threads or self.concurrency or _serve.THREADS, serve)
        self._accept(pool.put, first_bytes)

    def _accept(self, start: _serve.Start, first_bytes: bool) -> None:
        acceptor = _serve.Acceptor(self._places, self.listener(), start, first_bytes)
        with _serve.signals(acceptor, self._places.alarm):
            self._places.count(_serve.CONNECTIONS_MAX)
            self.ready()
            acceptor.run()
        self._drain()

    def _drain(self) -> None:
        deadline = time.monotonic() + DRAIN_WAIT
        poll = select.poll()
        poll.register(self._places.wakeup, select.POLLIN)
        while self._places.opened_now() > 0 and time.monotonic() < deadline:
            poll.poll(max(1, int((deadline - time.monotonic()) * 1000)))
            self._places.clear_wakeup()

    def _tell(self, name: str, body: Optional[Dict[str, Any]] = None) -> None:
        """Sends a message. An error means that the agent is gone, and is ignored."""
        if self._channel is not None:
            _try_to_send(self._channel, name, body)

    def _take(self, name: str, wait: float) -> Injected:
        if self._channel is None:
            return _connect_alone(name, wait, "no agent started this process")
        slot = self._slots.get(name)
        if slot is None:
            raise HeadstartError(
                f"the agent grants no connections of backend {name!r}: add it to the function's configuration, without "
                "backend_sockets"
            )
        deadline = time.monotonic() + wait
        with slot.turn, slot.changed:
            if slot.state == "taken":
                if self._gone:
                    return _connect_alone(name, wait, "the agent is gone")
                slot.state = "waiting"
                self._tell("request", {"backend": name})
            while slot.state == "waiting":
                left = deadline - time.monotonic()
                if left <= 0 or not slot.changed.wait(left):
                    raise HeadstartError(f"backend {name}: no connection within {wait:g} s")
            state, slot.state = slot.state, "taken"
            injected, slot.injected = slot.injected, None
            if state == "ready" and injected is not None:
                return injected
            return _connect_alone(name, wait, slot.reason)

    def _read(self, orders: "queue.Queue[Optional[_wire.Received]]") -> None:
        assert self._channel is not None
        try:
            while True:
                received = self._channel.receive()
                if received.name == "grant":
                    self._granted(received)
                else:
                    for descriptor in received.descriptors:
                        os.close(descriptor)
                    orders.put(received)
        except (EOFError, OSError, HeadstartError, KeyError) as error:
            if not isinstance(error, EOFError):
                report(f"cannot read the agent's message, the function serves on without the agent: {error}")
        self._gone = True
        orders.put(None)
        for slot in self._slots.values():
            with slot.changed:
                if slot.state == "waiting":
                    slot.state, slot.reason = "failed", "the agent is gone"
                slot.changed.notify_all()

    def _granted(self, received: _wire.Received) -> None:
        descriptor = received.descriptors[0] if received.descriptors else None
        if descriptor is not None:
            # Acknowledge first: until then the agent keeps its copy.
            self._tell("ack", {"injected_ns": time.monotonic_ns()})
        slot = self._slots.get(received.body["backend"])
        if slot is not None and slot.state == "waiting":
            slot.set(received.body, descriptor)
        elif descriptor is not None:
            os.close(descriptor)

    def _follow_orders(self, orders: "queue.Queue[Optional[_wire.Received]]") -> None:
        """Freezes and thaws, one after the other."""
        while True:
            order = orders.get()
            if order is None:
                # Without an agent there is no thaw, so the function accepts again.
                self._places.resume()
                return
            if order.name == "freeze":
                self._tell("quiet" if self._freeze() else "busy")
            elif order.name == "thaw":
                if self._places.paused:
                    self._thaw()
                self._tell("thawed", {"thawed_ns": time.monotonic_ns()})

    def _freeze(self) -> bool:
        if not self._places.pause():
            return False
        try:
            for hook in self._freeze_hooks:
                hook()
        except Exception as error:
            report(f"the instance refuses to freeze: {error!r}")
            self._thaw()
            return False
        return True

    def _thaw(self) -> None:
        try:
            for hook in self._thaw_hooks:
                hook()
        except Exception as error:
            report(f"a hook failed after the thaw: {error!r}")
        self._places.resume()


def attach() -> Function:
    """Attaches this process to the agent that started it. It is no error if no agent did."""
    entered_ns = time.monotonic_ns()
    channel = _wire.find()
    if channel is None:
        return Function(None, None)
    channel.set_timeout(LEASE_WAIT)
    # If the agent is gone, receiving fails; its lease may still be in the socket.
    _try_to_send(channel, "hello", {"shim": SHIM, "hello_ns": entered_ns})
    try:
        lease = channel.receive()
    except (OSError, EOFError) as error:
        raise HeadstartError(f"the agent sent no lease within {LEASE_WAIT:g} s: {error}") from None
    injected_ns = time.monotonic_ns()
    if lease.name != "lease" or len(lease.descriptors) < 2:
        raise HeadstartError("the agent's first message is not a lease: the versions of function and agent do not match")
    _try_to_send(channel, "ack", {"injected_ns": injected_ns})
    channel.set_timeout(None)
    return Function(channel, lease)


def run(main: Callable[[Function], None]) -> None:
    """Attaches and calls ``main(function)``. After an error it prints one line and exits with code 1."""
    try:
        main(attach())
    except HeadstartError as error:
        report(str(error))
        sys.exit(1)


def _try_to_send(channel: Channel, name: str, body: Optional[Dict[str, Any]]) -> None:
    try:
        channel.send(name, body)
    except OSError:
        pass


def _listen_alone() -> socket.socket:
    address, port = os.environ.get("HEADSTART_LISTEN"), os.environ.get("PORT")
    if not address and not port:
        raise HeadstartError("no agent started this function, and no address is set: set HEADSTART_LISTEN to host:port, or PORT")
    where = _split(address) if address else ("0.0.0.0", int(port or 0))
    listener = socket.create_server(where, backlog=1024)
    listener.setblocking(False)
    return listener


def _connect_alone(name: str, wait: float, why: str) -> Injected:
    variable = f"HEADSTART_BACKEND_{name.upper().replace('-', '_')}_URL"
    url = os.environ.get(variable)
    if not url:
        raise HeadstartError(f"backend {name}: {why}, and {variable} is not set")
    if not url.startswith("tcp://"):
        raise HeadstartError(f"backend {name}: {variable} must be tcp://host:port")
    try:
        connection = socket.create_connection(_split(url[len("tcp://") :]), timeout=wait)
    except OSError as error:
        raise HeadstartError(f"backend {name}: cannot connect to the address in {variable}: {error}") from None
    connection.setblocking(False)
    return Injected(connection, {"kind": "tcp"}, None)


def _split(address: str) -> Tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        raise HeadstartError(f"{address!r} must be host:port")
    return host.strip("[]"), int(port)
