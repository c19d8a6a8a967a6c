"""Accepts clients in the main thread, and serves them in a bounded number of other threads."""

from __future__ import annotations

import errno
import os
import queue
import select
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, NamedTuple, Tuple

from ._places import Places

# Most connections at a time; others wait in the kernel's queue.
CONNECTIONS_MAX = 2048
# Threads that serve clients, if the agent's configuration does not say `concurrency`.
THREADS = 40
# In seconds: a client that sends or reads nothing does not occupy its place for ever.
CLIENT_WAIT = 60.0
# After SIGTERM, in seconds, for a client that is connected to send its request: no other instance can answer it.
FIRST_REQUEST_GRACE = 0.3
# Pause in seconds when the process has no descriptors or memory left.
_EXHAUSTED_PAUSE = 0.05

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_BROKEN = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP)


class Client(NamedTuple):
    """An accepted connection."""

    socket: socket.socket
    address: Any
    accept_ns: int


Start = Callable[[Client], None]


def report(line: str) -> None:
    print(f"headstart: {line}", file=sys.stderr, flush=True)


def start_thread(target: Callable[..., None], *arguments: Any, name: str) -> None:
    """Starts a thread that gets no signals: only the main thread can run their handlers, and must be woken."""
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=target, args=arguments, name=name, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)


@contextmanager
def conversation(function: Any, client: Client) -> Iterator[None]:
    """Counts the end of a conversation. An error ends only this conversation."""
    try:
        yield
        function.served(client.accept_ns, time.monotonic_ns())
    except BaseException as error:  # also SystemExit: the thread serves other clients
        report(f"a connection failed: {error!r}")
    finally:
        client.socket.close()
        function._places.closed()


class Threads:
    """Up to `most` threads, which are started when they are needed. Clients wait while all are busy."""

    def __init__(self, most: int, serve: Start) -> None:
        self._most, self._serve = most, serve
        self._clients: "queue.SimpleQueue[Client]" = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._started = 0
        # At once, so that there is one for every client.
        self._start()

    def put(self, client: Client) -> None:
        self._clients.put(client)
        if self._idle.acquire(blocking=False) or self._started >= self._most:
            return
        try:
            self._start()
        except RuntimeError as error:
            self._most = self._started
            report(f"{error}: {self._most} threads serve the clients; `pids` in the agent's configuration limits them")

    def _start(self) -> None:
        start_thread(self._run, name="headstart-client")
        self._started += 1

    def _run(self) -> None:
        while True:
            try:
                client = self._clients.get_nowait()
            except queue.Empty:
                self._idle.release()
                client = self._clients.get()
            self._serve(client)


class Acceptor:
    """Accepts clients until it is told to stop."""

    def __init__(self, places: Places, listener: socket.socket, start: Start, first_bytes: bool) -> None:
        """Calls `start` for each client; with `first_bytes` not before it has sent some, so that it occupies no thread."""
        self._places, self._listener, self._start, self._first_bytes = places, listener, start, first_bytes
        self._waiting: Dict[int, Client] = {}
        self._listens = self._stopping = False

    def stop(self, *_: Any) -> None:
        """A signal handler."""
        self._stopping = True
        self._places.wake()

    def run(self) -> None:
        with select.epoll() as epoll:
            epoll.register(self._places.wakeup, select.EPOLLIN)
            try:
                while True:
                    self._places.clear_wakeup()
                    # Check after clearing, so that a later signal wakes the next poll.
                    if self._stopping:
                        break
                    self._listen(epoll, self._places.has_room())
                    self._poll(epoll, self._patience())
                self._listen(epoll, False)
                deadline = time.monotonic() + FIRST_REQUEST_GRACE
                while self._waiting and (left := deadline - time.monotonic()) > 0:
                    self._places.clear_wakeup()
                    self._poll(epoll, left)
            finally:
                for number in list(self._waiting):
                    self._leave(number)

    def _listen(self, epoll: select.epoll, wanted: bool) -> None:
        """Waits for connections only when there is a place for one."""
        if wanted != self._listens:
            if wanted:
                epoll.register(self._listener, select.EPOLLIN)
            else:
                epoll.unregister(self._listener)
            self._listens = wanted

    def _patience(self) -> float:
        """Ends clients that have sent nothing for too long, and returns the time until the next one, -1 for never."""
        for number, client in list(self._waiting.items()):
            left = client.accept_ns / 1e9 + CLIENT_WAIT - time.monotonic()
            if left > 0:
                return left
            self._leave(number)
        return -1

    def _leave(self, number: int) -> None:
        self._waiting.pop(number).socket.close()
        self._places.closed()

    def _poll(self, epoll: select.epoll, timeout: float) -> None:
        for number, _ in epoll.poll(timeout):
            if number in self._waiting:
                epoll.unregister(number)
                self._start(self._waiting.pop(number))
            elif number == self._listener.fileno():
                self._accept(epoll)

    def _accept(self, epoll: select.epoll) -> None:
        try:
            # Another instance may have accepted the connection.
            accepted = self._places.accept(self._listener)
        except OSError as error:
            if error.errno in _BROKEN:
                raise
            if error.errno in _EXHAUSTED:
                report(f"cannot accept at the moment: {error}")
                time.sleep(_EXHAUSTED_PAUSE)
            return  # otherwise it was this connection's error, and it is gone
        if accepted is None:
            return
        client = Client(*accepted, time.monotonic_ns())
        if self._first_bytes:
            self._waiting[client.socket.fileno()] = client
            epoll.register(client.socket, select.EPOLLIN)
        else:
            self._start(client)


@contextmanager
def signals(acceptor: Acceptor, wakeup: int) -> Iterator[None]:
    """SIGTERM stops `acceptor`, also when the kernel gives it to a thread that a library has started."""
    earlier = signal.signal(signal.SIGTERM, acceptor.stop)
    descriptor = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor)
        signal.signal(signal.SIGTERM, earlier)
