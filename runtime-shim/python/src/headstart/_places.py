"""Counts open client connections, in memory that the agent reads, and decides whether the instance may accept another."""

from __future__ import annotations

import mmap
import os
import select
import socket
import threading
import time
from typing import Any, Optional, Tuple

PAGE_BYTES = 4096

# Fields of the page: `counting` and `open` as 32 bits, `accepted` and `changed_ns` as 64 bits.
_COUNTING, _OPEN, _ACCEPTED, _CHANGED = 0, 1, 1, 2


class Places:
    """The places for connections of an instance. Only this process writes the page, in whole words, which the agent can
    read at any time.
    """

    def __init__(self, page: Optional[int], concurrency: Optional[int]) -> None:
        memory: Any = mmap.mmap(page, PAGE_BYTES) if page is not None else bytearray(PAGE_BYTES)
        if page is not None:
            os.close(page)
        view = memoryview(memory)
        self._words, self._longs = view.cast("I"), view.cast("Q")
        self._lock = threading.Lock()
        self._limit = concurrency
        self._open = 0
        self._paused = False
        self._counting = False
        self._gate: "Optional[select.epoll]" = None
        # A pipe that wakes the thread that waits for a place.
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def wakeup(self) -> int:
        """A descriptor that is readable after a change; call :meth:`clear_wakeup` before you check the state."""
        return self._wakeup_read

    @property
    def alarm(self) -> int:
        """The other end: what is written there makes :attr:`wakeup` readable."""
        return self._wakeup_write

    def wake(self) -> None:
        """Takes no lock, so that signal handlers can call it."""
        try:
            os.write(self._wakeup_write, b"!")
        except BlockingIOError:
            pass  # the pipe is full, so the thread wakes anyway

    def clear_wakeup(self) -> None:
        try:
            while os.read(self._wakeup_read, 512):
                pass
        except BlockingIOError:
            pass

    def count(self, most: Optional[int] = None) -> None:
        """Reports to the agent that every connection is counted from now on. There are no more places than `most`."""
        with self._lock:
            if most is not None:
                self._limit = min(most, self._limit or most)
            self._counting = True
            self._words[_COUNTING] = 1

    def guard(self, gate: "Optional[select.epoll]", listener: socket.socket) -> None:
        """From now on `listener` is in `gate` when there is a place for a connection, and only then."""
        with self._lock:
            self._gate, self._guarded, self._is_open = gate, listener, False
            self._settle()

    def _settle(self) -> None:
        if self._gate is None or self._is_open == self._has_room():
            return
        self._is_open = not self._is_open
        if self._is_open:
            self._gate.register(self._guarded, select.EPOLLIN)
        else:
            self._gate.unregister(self._guarded)

    def has_room(self) -> bool:
        with self._lock:
            return self._has_room()

    def _has_room(self) -> bool:
        return not self._paused and (self._limit is None or self._open < self._limit)

    def accept(self, listener: socket.socket) -> Optional[Tuple[socket.socket, Any]]:
        """A connection, if there are one and a free place. A pause comes before or after this, never in between."""
        with self._lock:
            if not self._has_room():
                return None
            try:
                accepted = listener.accept()
            except (BlockingIOError, InterruptedError):
                return None
            self._opened()
            return accepted

    def open(self) -> None:
        with self._lock:
            self._opened()

    def _opened(self) -> None:
        self._open += 1
        self._longs[_ACCEPTED] += 1
        self._longs[_CHANGED] = time.monotonic_ns()
        # Last, so that the agent sees the other fields when it sees this one.
        self._words[_OPEN] = self._open
        self._settle()

    def closed(self) -> None:
        with self._lock:
            self._open -= 1
            self._longs[_CHANGED] = time.monotonic_ns()
            self._words[_OPEN] = self._open
            self._settle()
        self.wake()

    def opened_now(self) -> int:
        with self._lock:
            return self._open

    def pause(self) -> bool:
        """Stops accepting. If a connection is open, or may be, it changes nothing and returns False."""
        with self._lock:
            quiet = self._counting and self._open == 0
            self._paused = self._paused or quiet
            self._settle()
            return quiet

    @property
    def paused(self) -> bool:
        with self._lock:
            return self._paused

    def resume(self) -> None:
        with self._lock:
            self._paused = False
            self._settle()
        self.wake()
