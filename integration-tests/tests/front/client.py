"""Speaks to a front with Python's ssl: client.py PORT CA HOST WHAT."""

import http.client
import socket
import ssl
import sys

port, ca, host, what = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]


def session(alpn, version=None):
    context = ssl.create_default_context(cafile=ca)
    context.set_alpn_protocols(alpn)
    if version:
        context.minimum_version = context.maximum_version = version
    plain = socket.create_connection(("127.0.0.1", port), timeout=20)
    return context.wrap_socket(plain, server_hostname=host)


def ask(stream, text):
    """The first line of an answer, of which head and body may come apart."""
    stream.sendall(text)
    answer = http.client.HTTPResponse(stream)
    answer.begin()
    answer.read()
    return f"HTTP/1.1 {answer.status} {answer.reason}"


if what == "versions":
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        with session(["http/1.1"], version) as stream:
            answer = ask(stream, b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode())
            print(stream.version(), stream.selected_alpn_protocol(), answer)
elif what == "upgrade":
    with session(["http/1.1"]) as stream:
        head = b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n" % host.encode()
        reader = stream.makefile("rb")
        stream.sendall(head)
        lines = list(iter(reader.readline, b"\r\n"))
        print(lines[0].decode().strip())
        for word in (b"one\n", b"two\n"):
            stream.sendall(word)
            print(reader.readline().decode(), end="")
elif what == "raw":
    with session(["h2"]) as stream:
        address, own = stream.getsockname()
        reader = stream.makefile("rb")
        stream.sendall(b"early\n")
        first = reader.readline().decode().strip()
        print("the address is mine" if first == f"from {address}:{own}" else first)
        print(reader.readline().decode(), end="")
        stream.sendall(b"later\n")
        print(reader.readline().decode(), end="")
        print(stream.selected_alpn_protocol())
elif what == "silent":
    # A connection that says nothing is ended.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        print(plain.recv(1))
elif what == "garbage":
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        # A message of another kind, where a ClientHello is due.
        plain.sendall(b"\x16\x03\x01\x00\x04\x02\x00\x00\x00")
        alert = plain.recv(7)
        print(alert[0], alert[5])
elif what == "held":
    # One connection that lives for several requests: one at once, and one for each line that comes.
    with session(["http/1.1"]) as stream:
        request = b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host.encode()
        print(ask(stream, request), flush=True)
        for _ in sys.stdin:
            print(ask(stream, request), flush=True)
elif what == "heads":
    # Heads in which a function could read another host or client than the front does.
    for lines in (
        [f"Host: {host}", "Host: other.test"],
        [f"Host: {host}:80@other.test"],
        [f"Host: {host}", "X_Forwarded_For: 198.51.100.1", "X-Real-IP: 198.51.100.1"],
        [f"Host: {host}", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
    ):
        with session(["http/1.1"]) as stream:
            stream.sendall("\r\n".join(["GET / HTTP/1.1", *lines, "", ""]).encode())
            answer = http.client.HTTPResponse(stream)
            answer.begin()
            body = answer.read().decode().lower()
            print(answer.status, any(word in body for word in ("198.51", "h2c", "http2-settings")))
elif what == "unasked":
    # A client of HTTP/2 that keeps its connection alive with PINGs and asks for nothing.
    with session(["h2"]) as stream:
        settings, ping = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00", b"\x00\x00\x08\x06" + bytes(5) + bytes(8)
        stream.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + ping)
        received = b""
        while part := stream.recv(4096):
            received += part
        print("GOAWAY" if b"\x00\x00\x08\x07" in received else received)
elif what == "half-closed":
    # A client that has sent its request and ends its half.
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % host.encode())
        plain.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(plain)
        answer.begin()
        print(answer.status)
