"""What WSGI and ASGI have in common: the body of a request (RFC 9112, sections 6 and 7)."""

from __future__ import annotations

from email.message import Message
from http import HTTPStatus
from typing import Optional

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
# Bytes of a line, and of a part of a body that is read at a time.
LINE_MAX = PART_MAX = 65536
# Lines after the last chunk.
TRAILERS_MAX = 100
# In seconds, for a client that still sends when the answer is complete: to close with something unread would be a reset,
# which may overtake the answer (RFC 9112, section 9.6).
LINGER = 2.0


class BadRequest(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(status)
        self.status = status


def body_length(headers: "Message[str, str]", version: str) -> Optional[int]:
    """Length of the body in bytes; None for a body in chunks."""
    lengths = set(headers.get_all("Content-Length", []))
    coding = headers.get("Transfer-Encoding")
    if coding is not None:
        if lengths or version < "HTTP/1.1":
            raise BadRequest
        if coding.strip().lower() != "chunked":
            raise BadRequest(HTTPStatus.NOT_IMPLEMENTED)
        return None
    length = lengths.pop() if lengths else "0"
    # int() also accepts signs and underscores; RFC 9110, section 8.6, allows digits only.
    if lengths or not (length.isascii() and length.isdigit() and len(length) < 20):
        raise BadRequest
    return int(length)


def expects_continue(headers: "Message[str, str]", version: str) -> bool:
    """Whether the client waits with its body for a status (RFC 9110, section 10.1.1)."""
    return version >= "HTTP/1.1" and headers.get("Expect", "").lower() == "100-continue"


def chunk_length(line: bytes) -> int:
    """Length of the chunk that begins with this line; 0 for the last one."""
    size = line.partition(b";")[0].strip()
    if not line.endswith(b"\n") or not size or len(size) > 15 or size.strip(b"0123456789abcdefABCDEF"):
        raise BadRequest
    return int(size, 16)
