"""How many client connections are open, in memory that the agent sees too, and whether one more may be accepted."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from typing import Any, Optional, Tuple

PAGE_BYTES = 4096

# Places in the page: `counting` and `open` as 32 bits, `accepted` and `changed_ns` as 64 bits.
_COUNTING, _OPEN, _ACCEPTED, _CHANGED = 0, 1, 1, 2


class Places:
    """The places of an instance. This process alone writes the page; whole words, so that the agent never sees halves."""

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
        # Wakes whoever waits for a place.
        self._ear, self._mouth = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    @property
    def ear(self) -> int:
        """Readable when something may have changed; :meth:`hear` before looking again."""
        return self._ear

    def wake(self) -> None:
        """Also for signal handlers: takes no lock."""
        try:
            os.write(self._mouth, b"!")
        except BlockingIOError:
            pass  # it is awake

    def hear(self) -> None:
        try:
            while os.read(self._ear, 512):
                pass
        except BlockingIOError:
            pass

    def count(self) -> None:
        """From here on every connection is counted."""
        with self._lock:
            self._counting = True
            self._words[_COUNTING] = 1

    def has_room(self) -> bool:
        with self._lock:
            return self._has_room()

    def _has_room(self) -> bool:
        return not self._paused and (self._limit is None or self._open < self._limit)

    def accept(self, listener: socket.socket) -> Optional[Tuple[socket.socket, Any]]:
        """A connection, if there is one and a place for it. A pause comes before or after this."""
        with self._lock:
            if not self._has_room():
                return None
            try:
                accepted = listener.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
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
        # Last: who sees it sees the others.
        self._words[_OPEN] = self._open

    def closed(self) -> None:
        with self._lock:
            self._open -= 1
            self._longs[_CHANGED] = time.monotonic_ns()
            self._words[_OPEN] = self._open
        self.wake()

    def opened_now(self) -> int:
        with self._lock:
            return self._open

    def pause(self) -> bool:
        """Accepts nothing from now on. False, and nothing changes, when a connection is open, or may be."""
        with self._lock:
            quiet = self._counting and self._open == 0
            self._paused = self._paused or quiet
            return quiet

    @property
    def paused(self) -> bool:
        with self._lock:
            return self._paused

    def resume(self) -> None:
        with self._lock:
            self._paused = False
        self.wake()
