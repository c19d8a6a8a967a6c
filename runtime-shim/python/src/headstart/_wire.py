"""The control socket: one message in each packet, with descriptors beside it (SCM_RIGHTS, unix(7)).

A packet is ``HS``, the version, a zero byte, and a JSON body, which is an object with the message's name as its key.
"""

from __future__ import annotations

import json
import os
import socket
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

VERSION = 3
CONTROL_FD_ENV = "HEADSTART_CONTROL_FD"
CONTROL_PATH = "/run/headstart/control.sock"

# Longest packets of both directions in bytes, and most descriptors beside one: the listener, the page, 16 backends.
TO_AGENT_MAX = 4 * 1024
TO_FUNCTION_MAX = 64 * 1024
DESCRIPTORS_MAX = 18

_HEAD = b"HS" + bytes([VERSION, 0])


class HeadstartError(Exception):
    """The function cannot go on; the text says what to do about it."""


class Received(NamedTuple):
    """A message of the agent."""

    name: str
    body: Dict[str, Any]
    descriptors: List[int]


def encode(name: str, body: Dict[str, Any]) -> bytes:
    packet = _HEAD + json.dumps({name: body}, separators=(",", ":")).encode()
    if len(packet) > TO_AGENT_MAX:
        raise HeadstartError(f"a control message is larger than {TO_AGENT_MAX} bytes")
    return packet


def decode(packet: bytes) -> Tuple[str, Dict[str, Any]]:
    if packet[:2] != b"HS" or len(packet) < 4:
        raise HeadstartError("the control socket received something that is no message of an agent")
    if packet[2] != VERSION:
        raise HeadstartError(f"the agent uses version {packet[2]} of the control protocol, this module version {VERSION}")
    try:
        ((name, body),) = json.loads(packet[4:]).items()
    except (ValueError, AttributeError) as error:
        raise HeadstartError(f"a control message cannot be read: {error}") from None
    return name, body


def variant(value: Any) -> Tuple[str, Dict[str, Any]]:
    """A variant of an enumeration: its name, or an object with the name as its key."""
    if isinstance(value, str):
        return value, {}
    ((name, body),) = value.items()
    return name, body


class Channel:
    """The function's end of the control socket. Any thread may send; only one may receive."""

    def __init__(self, control: socket.socket) -> None:
        self._socket = control

    def send(self, name: str, body: Optional[Dict[str, Any]] = None) -> None:
        """Raises OSError when the agent is gone."""
        self._socket.sendall(encode(name, body or {}))

    def receive(self) -> Received:
        """Waits for a message. Raises EOFError when the agent is gone."""
        packet, descriptors, flags, _ = socket.recv_fds(
            self._socket, TO_FUNCTION_MAX + 1, DESCRIPTORS_MAX, socket.MSG_CMSG_CLOEXEC
        )
        try:
            if not packet:
                raise EOFError("the agent has closed the control socket")
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise HeadstartError("a control message was truncated: the process has too few free descriptors (RLIMIT_NOFILE)")
            name, body = decode(packet)
        except BaseException:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        return Received(name, body, list(descriptors))

    def set_timeout(self, seconds: Optional[float]) -> None:
        self._socket.settimeout(seconds)


def find() -> Optional[Channel]:
    """The control socket of this process; None when no agent started it."""
    number = os.environ.pop(CONTROL_FD_ENV, None)
    if number is not None:
        try:
            control = socket.socket(fileno=int(number))
            kind = (control.family, control.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE))
        except (OSError, ValueError) as error:
            raise HeadstartError(f"{CONTROL_FD_ENV}={number} is no control socket: {error}") from None
        if kind != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            raise HeadstartError(f"{CONTROL_FD_ENV}={number} is no control socket")
        # Child processes must not inherit it.
        control.set_inheritable(False)
        return Channel(control)
    if os.path.exists(CONTROL_PATH):
        control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.connect(CONTROL_PATH)
        return Channel(control)
    return None
