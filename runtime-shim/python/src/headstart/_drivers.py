"""Drivers over connections of the agent: they log in to nobody, since the agent has done that.

pg8000 and PyMySQL insist on a login: it is played to them, and not a byte of it leaves the process. PyMySQL goes on with
questions of its own, which do.
"""

from __future__ import annotations

import importlib
import os
import socket
import struct
from typing import TYPE_CHECKING, Any, Callable, Optional

from ._wire import HeadstartError

if TYPE_CHECKING:
    from ._function import Backend, Injected


def pg8000(backend: "Backend", wait: float, arguments: "dict[str, Any]") -> Any:
    module = _driver("pg8000.dbapi", "pg8000>=1.31")
    injected = _take(backend, wait, "postgres")
    session = injected.session
    answer = _message(b"R", struct.pack(">i", 0))
    for name, value in session["parameters"]:
        answer += _message(b"S", name.encode() + b"\0" + value.encode() + b"\0")
    # The secret with which a query can be cancelled stays in the agent.
    answer += _message(b"K", struct.pack(">ii", session["process_id"], 0)) + _message(b"Z", b"I")
    played = _Played(injected, backend, b"", _startup_length, answer)
    try:
        return module.connect(
            user=session["user"], database=session["database"], sock=played, ssl_context=False, **arguments
        )
    except TypeError as error:
        played.close()
        if "sock" in str(error):
            raise HeadstartError("pg8000 is too old to be given a connection: pip install 'pg8000>=1.31'") from None
        raise
    except BaseException:
        played.close()
        raise


def pymysql(backend: "Backend", wait: float, arguments: "dict[str, Any]") -> Any:
    module = _driver("pymysql", "PyMySQL>=1.0")
    injected = _take(backend, wait, "mysql")
    session = injected.session
    # Nobody looks at the proof of a password that is made of this.
    nonce = bytes(byte % 94 + 33 for byte in os.urandom(20))
    # TLS is somebody else's here.
    flags = session["capabilities"] & ~(1 << 11)
    greeting = b"\x0a" + session["server_version"].encode() + b"\0" + struct.pack("<I", session["connection_id"])
    greeting += nonce[:8] + b"\0" + struct.pack("<HBHHB", flags & 0xFFFF, session["collation"], session["status"], flags >> 16, 21)
    greeting += bytes(10) + nonce[8:] + b"\0mysql_native_password\0"
    done = b"\0\0\0" + struct.pack("<HH", session["status"], 0)
    played = _Played(injected, backend, _packet(0, greeting), _packet_length, _packet(2, done))
    try:
        connection = module.connect(
            user=session["user"], database=session.get("database"), password="", defer_connect=True, **arguments
        )
        connection.connect(played)
        return connection
    except BaseException:
        played.close()
        raise


def redis(backend: "Backend", wait: float, arguments: "dict[str, Any]") -> Any:
    module = _driver("redis", "redis>=4.3")

    class Connection(module.connection.Connection):  # type: ignore[misc, name-defined]
        """One that the agent has logged in; another each time it is lost."""

        def _connect(self) -> socket.socket:
            try:
                injected = _take(backend, wait, "redis")
            except HeadstartError as error:
                # What the driver's own retries understand.
                raise module.exceptions.ConnectionError(str(error)) from None
            connection = _Given(injected, backend)
            connection.settimeout(self.socket_timeout)
            return connection

        def on_connect(self, *_: Any, **__: Any) -> None:
            self._parser.on_connect(self)

    pool = module.ConnectionPool(connection_class=Connection, **arguments)
    return module.Redis(connection_pool=pool)


def _driver(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HeadstartError(f"{error}: pip install '{package}'") from None


def _take(backend: "Backend", wait: float, kind: str) -> "Injected":
    injected = backend.socket(wait)
    is_kind = injected.session["kind"]
    if is_kind == kind:
        injected.socket.setblocking(True)
        return injected
    injected.socket.close()
    backend._returned()
    if is_kind == "tcp":
        raise HeadstartError(
            f"backend {backend.name}: nobody has logged in to it. With kind = \"{kind}\" the agent does; without an "
            "agent, connect as the driver says"
        )
    raise HeadstartError(f"backend {backend.name} is {is_kind}, not {kind}")


def _message(tag: bytes, body: bytes) -> bytes:
    """Of PostgreSQL."""
    return tag + struct.pack(">i", len(body) + 4) + body


def _startup_length(heard: bytes) -> Optional[int]:
    return struct.unpack(">i", heard[:4])[0] if len(heard) >= 4 else None


def _packet(sequence: int, body: bytes) -> bytes:
    """Of MariaDB and MySQL."""
    return struct.pack("<I", len(body))[:3] + bytes([sequence]) + body


def _packet_length(heard: bytes) -> Optional[int]:
    return 4 + int.from_bytes(heard[:3], "little") if len(heard) >= 4 else None


class _Given(socket.socket):
    """A connection whose place the agent gives to another when it is closed."""

    def __init__(self, injected: "Injected", backend: "Backend") -> None:
        super().__init__(fileno=injected.socket.detach())
        self._backend: Optional["Backend"] = backend

    def _real_close(self, *arguments: Any) -> None:
        super()._real_close(*arguments)  # type: ignore[misc]
        backend, self._backend = self._backend, None
        if backend is not None:
            backend._returned()


class _Played(_Given):
    """A connection before which a login is played: something is said, something is heard, and answered. From then on it
    is the connection.
    """

    def __init__(
        self,
        injected: "Injected",
        backend: "Backend",
        said: bytes,
        length: Callable[[bytes], Optional[int]],
        answer: bytes,
    ) -> None:
        super().__init__(injected, backend)
        self._said, self._heard = bytearray(said), bytearray()
        self._length, self._answer = length, answer
        self._played = False

    def send(self, data: Any, flags: int = 0) -> int:
        if self._played:
            return super().send(data, flags)
        data = bytes(data)
        self._heard += data
        length = self._length(bytes(self._heard))
        if length is not None and len(self._heard) >= length:
            self._played = True
            self._said += self._answer
            if len(self._heard) > length:
                super().sendall(self._heard[length:])
            self._heard.clear()
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._played:
            super().sendall(data, flags)
        else:
            self.send(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._said:
            return super().recv(size, flags)
        part = bytes(self._said[:size])
        del self._said[:size]
        return part

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        if not self._said:
            return super().recv_into(buffer, size, flags)
        part = self.recv(size or len(buffer))
        buffer[: len(part)] = part
        return len(part)
