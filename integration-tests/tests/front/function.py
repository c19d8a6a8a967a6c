"""A server that tells what it was asked; with NAME=raw one of a protocol of its own."""

import json
import os
import socketserver
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME = os.environ["NAME"]
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"


class Tells(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.headers.get("Upgrade") == "echo":
            self.send_response(101)
            self.send_header("Connection", "Upgrade")
            self.send_header("Upgrade", "echo")
            self.end_headers()
            for line in self.rfile:
                self.wfile.write(line)
            self.close_connection = True
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/dies"):
            os._exit(3)
        if self.path.endswith("/large"):
            self.send_response(200)
            self.send_header("Content-Length", str(16 << 20))
            self.end_headers()
            for _ in range(256):
                self.wfile.write(b"x" * (1 << 16))
            return
        answer = {"name": NAME, "path": self.path, "body": len(body), "headers": dict(self.headers)}
        text = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_POST = do_GET

    def log_message(self, *_):
        pass


class Raw(socketserver.StreamRequestHandler):
    """Says where its client is, if it is told; then gives back each line, and says when the client has ended."""

    def handle(self):
        line = self.rfile.read(16)
        if line[:12] == SIGNATURE:
            addresses = self.rfile.read(int.from_bytes(line[14:16], "big"))
            port = int.from_bytes(addresses[8:10], "big")
            self.wfile.write(b"from %d.%d.%d.%d:%d\n" % (*addresses[:4], port))
        for line in self.rfile:
            self.wfile.write(line)
        self.wfile.write(b"end\n")


class Server(ThreadingHTTPServer):
    daemon_threads = True


Server(("0.0.0.0", 8080), Raw if NAME == "raw" else Tells).serve_forever()
