"""A listening socket that counts its connections, for servers that accept by themselves."""

from __future__ import annotations

import os
import select
import socket
from typing import Any, Callable, Optional, Tuple

from ._places import Places


class CountingListener(socket.socket):
    """Looks like the listening socket, and is readable only when there is a place for a connection."""

    def __init__(self, listener: socket.socket, places: Places, ready: Callable[[], None]) -> None:
        super().__init__(fileno=os.dup(listener.fileno()))
        self._listener, self._places, self._ready = listener, places, ready
        # An epoll is readable when something in it is.
        self._gate = select.epoll()
        places.count()
        places.guard(self._gate, listener)

    def fileno(self) -> int:
        """What a server waits for."""
        return -1 if self._gate.closed else self._gate.fileno()

    def listen(self, backlog: int = 0) -> None:
        """The agent listens; the server calls this when it begins to accept."""
        self._ready()

    def accept(self) -> "Tuple[socket.socket, Any]":
        accepted = self._places.accept(self._listener)
        if accepted is None:
            raise BlockingIOError("there is no connection, or no place for one")
        connection, address = accepted
        return CountedSocket(connection, self._places), address

    def setblocking(self, flag: bool) -> None:
        """Other instances accept from it too: it stays non-blocking."""

    def settimeout(self, value: Optional[float]) -> None:
        """As above."""

    def close(self) -> None:
        self._places.guard(None, self._listener)
        self._gate.close()
        super().close()


class CountedSocket(socket.socket):
    """A connection that counts until it is closed."""

    _places: Optional[Places] = None

    def __init__(self, connection: socket.socket, places: Places) -> None:
        super().__init__(connection.family, connection.type, connection.proto, connection.detach())
        self._places = places

    def _end(self) -> None:
        places, self._places = self._places, None
        if places is not None:
            places.closed()

    def close(self) -> None:
        super().close()
        self._end()

    def __del__(self) -> None:
        self._end()
