"""Drivers on connections of the agent, which has already logged in.

pg8000 and PyMySQL cannot skip the login, so this module simulates it: no byte of it leaves the process. The queries that
PyMySQL sends after its login go to the server.
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
    # The secret that cancels queries stays in the agent.
    answer += _message(b"K", struct.pack(">ii", session["process_id"], 0)) + _message(b"Z", b"I")
    connection_socket = _SimulatedLogin(injected, backend, b"", _startup_length, answer)
    try:
        return module.connect(
            user=session["user"], database=session["database"], sock=connection_socket, ssl_context=False, **arguments
        )
    except TypeError as error:
        connection_socket.close()
        if "sock" in str(error):
            raise HeadstartError("this pg8000 is too old to use an existing connection: pip install 'pg8000>=1.31'") from None
        raise
    except BaseException:
        connection_socket.close()
        raise


def pymysql(backend: "Backend", wait: float, arguments: "dict[str, Any]") -> Any:
    module = _driver("pymysql", "PyMySQL>=1.0")
    injected = _take(backend, wait, "mysql")
    session = injected.session
    # No server checks the password proof that the driver computes from it.
    nonce = bytes(byte % 94 + 33 for byte in os.urandom(20))
    # Without the flag for TLS: the agent or the kernel encrypts.
    flags = session["capabilities"] & ~(1 << 11)
    greeting = b"\x0a" + session["server_version"].encode() + b"\0" + struct.pack("<I", session["connection_id"])
    greeting += nonce[:8] + b"\0" + struct.pack("<HBHHB", flags & 0xFFFF, session["collation"], session["status"], flags >> 16, 21)
    greeting += bytes(10) + nonce[8:] + b"\0mysql_native_password\0"
    done = b"\0\0\0" + struct.pack("<HH", session["status"], 0)
    connection_socket = _SimulatedLogin(injected, backend, _packet(0, greeting), _packet_length, _packet(2, done))
    try:
        connection = module.connect(
            user=session["user"], database=session.get("database"), password="", defer_connect=True, **arguments
        )
        connection.connect(connection_socket)
        return connection
    except BaseException:
        connection_socket.close()
        raise


def redis(backend: "Backend", wait: float, arguments: "dict[str, Any]") -> Any:
    module = _driver("redis", "redis>=4.3")

    class Connection(module.connection.Connection):  # type: ignore[misc, name-defined]
        """A connection that the agent has logged in; a new one after each loss."""

        def _connect(self) -> socket.socket:
            try:
                injected = _take(backend, wait, "redis")
            except HeadstartError as error:
                # The error on which the driver retries.
                raise module.exceptions.ConnectionError(str(error)) from None
            connection = _AgentSocket(injected, backend)
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
            f"backend {backend.name}: the connection is not logged in. Set kind = \"{kind}\", so that the agent logs in; "
            "without an agent, connect with the driver itself"
        )
    raise HeadstartError(f"backend {backend.name} is {is_kind}, not {kind}")


def _message(tag: bytes, body: bytes) -> bytes:
    """A message of PostgreSQL."""
    return tag + struct.pack(">i", len(body) + 4) + body


def _startup_length(message: bytes) -> Optional[int]:
    return struct.unpack(">i", message[:4])[0] if len(message) >= 4 else None


def _packet(sequence: int, body: bytes) -> bytes:
    """A packet of MariaDB and MySQL."""
    return struct.pack("<I", len(body))[:3] + bytes([sequence]) + body


def _packet_length(message: bytes) -> Optional[int]:
    return 4 + int.from_bytes(message[:3], "little") if len(message) >= 4 else None


class _AgentSocket(socket.socket):
    """A connection of the agent. When it is closed, its place in the agent's pool is returned."""

    def __init__(self, injected: "Injected", backend: "Backend") -> None:
        super().__init__(fileno=injected.socket.detach())
        self._backend: Optional["Backend"] = backend

    def _real_close(self, *arguments: Any) -> None:
        super()._real_close(*arguments)  # type: ignore[misc]
        backend, self._backend = self._backend, None
        if backend is not None:
            backend._returned()


class _SimulatedLogin(_AgentSocket):
    """A connection with a simulated login: the driver reads the greeting, writes one message and reads the answer. After
    that it is the connection itself.
    """

    def __init__(
        self,
        injected: "Injected",
        backend: "Backend",
        greeting: bytes,
        length: Callable[[bytes], Optional[int]],
        answer: bytes,
    ) -> None:
        super().__init__(injected, backend)
        self._outgoing, self._incoming = bytearray(greeting), bytearray()
        self._length, self._answer = length, answer
        self._logged_in = False

    def send(self, data: Any, flags: int = 0) -> int:
        if self._logged_in:
            return super().send(data, flags)
        data = bytes(data)
        self._incoming += data
        length = self._length(bytes(self._incoming))
        if length is not None and len(self._incoming) >= length:
            self._logged_in = True
            self._outgoing += self._answer
            if len(self._incoming) > length:
                super().sendall(self._incoming[length:])
            self._incoming.clear()
        return len(data)

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._logged_in:
            super().sendall(data, flags)
        else:
            self.send(data)

    def recv(self, size: int, flags: int = 0) -> bytes:
        if not self._outgoing:
            return super().recv(size, flags)
        part = bytes(self._outgoing[:size])
        del self._outgoing[:size]
        return part

    def recv_into(self, buffer: Any, size: int = 0, flags: int = 0) -> int:
        if not self._outgoing:
            return super().recv_into(buffer, size, flags)
        part = self.recv(size or len(buffer))
        buffer[: len(part)] = part
        return len(part)
