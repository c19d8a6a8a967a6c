"""A function in a process of its own; the test acts as its agent."""

import array
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import unittest

SOURCE = os.path.join(os.path.dirname(__file__), "..", "src")
PYTHONPATH = os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")])
HEAD = b"HS\x03\x00"
LIMIT = 20

WSGI = """
    import os, time, headstart
    def main(function):
        function.on_freeze(lambda: print("hook: freeze", flush=True))
        function.on_thaw(lambda: print("hook: thaw", flush=True))
        def app(environ, start_response):
            if environ["PATH_INFO"] == "/raise":
                raise ValueError("no")
            if environ["PATH_INFO"] == "/backend":
                injected = function.backend("db").socket()
                injected.socket.setblocking(True)
                injected.socket.sendall(b"hello")
                body = injected.session["kind"]
            else:
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0)).decode() or function.instance or "alone"
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
            return [body.encode()]
        function.serve_wsgi(app)
    headstart.run(main)
"""


class Agent:
    """The other end of the control socket, the listener and the page."""

    def __init__(self, script, backends=(), concurrency=None, **lease):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(LIMIT)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.page = os.memfd_create("page")
        os.ftruncate(self.page, 4096)
        self.output = tempfile.TemporaryFile()
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "HEADSTART_CONTROL_FD": str(theirs.fileno())}
        self.child = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script)],
            env=environment, pass_fds=[theirs.fileno()], stdout=self.output, stderr=subprocess.STDOUT,
        )
        theirs.close()
        descriptors = [self.listener.fileno(), self.page] + [fd for _, fd in backends]
        grants = [grant for grant, _ in backends] + lease.pop("pending", [])
        body = {"function": "f", "instance": "f-1", "concurrency": concurrency, "backends": grants, **lease}
        self.tell("lease", body, descriptors)

    def tell(self, name, body, descriptors=()):
        packet = HEAD + json.dumps({name: body}).encode()
        rights = array.array("i", descriptors)
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
        self.control.sendmsg([packet], ancillary)

    def receive(self, expected):
        packet = self.control.recv(4096)
        assert packet[:4] == HEAD, packet
        ((name, body),) = json.loads(packet[4:]).items()
        assert name == expected, (name, body, self.said())
        return body

    def until_ready(self):
        assert self.receive("hello")["shim"].startswith("headstart-python/")
        self.receive("ack")
        self.receive("ready")

    def seen(self):
        counting, is_open, accepted, changed = struct.unpack("IIQQ", os.pread(self.page, 24, 0))
        return counting, is_open, accepted, changed > 0

    def connect(self):
        return socket.create_connection(self.listener.getsockname(), timeout=LIMIT)

    def ask(self, path="/", body=""):
        with self.connect() as client:
            return exchange(client, path, body)

    def said(self):
        self.output.seek(0)
        return self.output.read().decode()

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        return self.child.wait(LIMIT)

    def close(self):
        self.child.kill()
        self.child.wait()
        for end in (self.control, self.listener, self.output):
            end.close()
        os.close(self.page)


def read_all(client):
    answer = b""
    try:
        while part := client.recv(65536):
            answer += part
    except ConnectionResetError:
        pass  # it closed the connection without reading everything
    return answer


def exchange(client, path="/", body=""):
    client.sendall(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = b""
    while True:
        part = client.recv(65536)
        if not part:
            return answer.decode()
        answer += part


class AgentTest(unittest.TestCase):
    def agent(self, script=WSGI, **lease):
        agent = Agent(script, **lease)
        self.addCleanup(agent.close)
        return agent
