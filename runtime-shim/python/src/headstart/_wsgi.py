"""WSGI over the standard library's server, one request at a time."""

from __future__ import annotations

import socket
from typing import Any, Callable, Dict
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler


class _Server:
    """The part of a server that its request handler uses."""

    def __init__(self, name: str, port: int, application: Callable[..., Any]) -> None:
        self.application = application
        self.base_environ: Dict[str, str] = {
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "GATEWAY_INTERFACE": "CGI/1.1",
            "REMOTE_HOST": "",
            "CONTENT_LENGTH": "",
            "SCRIPT_NAME": "",
        }

    def get_app(self) -> Callable[..., Any]:
        return self.application


class _Threads(ServerHandler):
    wsgi_multithread = True


class _Handler(WSGIRequestHandler):
    # In seconds: a client that sends or reads nothing does not occupy its place for ever.
    timeout = 60

    def address_string(self) -> str:
        return str(self.client_address[0])

    def log_message(self, format: str, *args: Any) -> None:
        pass  # the agent reports times

    def handle(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline = self.request_version = self.command = ""
            self.send_error(414)
            return
        if not self.raw_requestline or not self.parse_request():
            return
        handler = _Threads(self.rfile, self.wfile, self.get_stderr(), self.get_environ())  # type: ignore[arg-type]
        handler.request_handler = self  # type: ignore[attr-defined]
        handler.run(self.server.get_app())  # type: ignore[attr-defined]


def handler(function: Any, application: Callable[..., Any]) -> Callable[[socket.socket, Any], None]:
    """The handler for :meth:`Function.serve_connections`."""
    host, port = function.listener().getsockname()[:2]
    server = _Server(host, port, application)

    def serve(connection: socket.socket, address: Any) -> None:
        _Handler(connection, address, server)  # type: ignore[arg-type]

    return serve
