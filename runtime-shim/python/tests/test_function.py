"""Runs a function in a process of its own; the test acts as its agent."""

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


ASGI = """
    import asyncio, headstart
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while True:
                event = await receive()
                print(event["type"], flush=True)
                await send({"type": event["type"] + ".complete"})
                if event["type"] == "lifespan.shutdown":
                    return
        assert scope["type"] == "http", scope
        if scope["path"] == "/raise":
            raise ValueError("no")
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event["body"], event["more_body"]
        await asyncio.sleep(0)
        said = " ".join([scope["method"], scope["path"], scope["query_string"].decode(), str(len(body))])
        known = [(b"content-length", str(len(said)).encode())] if scope["path"] == "/known" else []
        await send({"type": "http.response.start", "status": 201, "headers": known + [(b"x-a", b"b")]})
        for letter in said:
            await send({"type": "http.response.body", "body": letter.encode(), "more_body": True})
        await send({"type": "http.response.body"})
        if scope["path"] == "/late":
            assert (await receive())["type"] == "http.disconnect"
    headstart.run(lambda function: function.serve_asgi(app))
"""


class Agent:
    """The other end of the control socket, the listener and the page."""

    def __init__(self, script, backends=(), concurrency=None, **lease):
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.control.settimeout(LIMIT)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.page = os.memfd_create("page")
        os.ftruncate(self.page, 4096)
        self.output = tempfile.TemporaryFile()
        environment = {**os.environ, "PYTHONPATH": SOURCE, "HEADSTART_CONTROL_FD": str(theirs.fileno())}
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


class FunctionTest(unittest.TestCase):
    def agent(self, script=WSGI, **lease):
        agent = Agent(script, **lease)
        self.addCleanup(agent.close)
        return agent

    def test_a_request_is_served_counted_and_told_once(self):
        agent = self.agent()
        agent.until_ready()
        self.assertEqual(agent.seen(), (1, 0, 0, False))
        answer = agent.ask()
        self.assertTrue(answer.startswith("HTTP/1.0 200 OK") and answer.endswith("f-1"), answer)
        self.assertGreater(agent.receive("served")["first_response_ns"], 0)
        self.assertTrue(agent.ask(body="echo").endswith("echo"))
        self.assertTrue("500" in agent.ask("/raise"))
        self.assertTrue(agent.ask().endswith("f-1"), "an error is one request's")
        self.assertEqual(agent.stop(), 0, agent.said())
        self.assertEqual(agent.seen(), (1, 0, 4, True))

    def test_backends_are_leased_and_asked_for(self):
        ours, theirs = socket.socketpair()

        def ready(session="tcp", **more):
            return {"backend": "db", "status": {"ready": {"session": session, "expires_ns": None, **more}}}

        agent = self.agent(backends=[(ready(), theirs.fileno())])
        theirs.close()
        agent.until_ready()
        self.assertTrue(agent.ask("/backend").endswith("tcp"))
        agent.receive("served")
        self.assertEqual(ours.recv(5), b"hello")
        # The next call gets another connection.
        with agent.connect() as client:
            client.sendall(b"GET /backend HTTP/1.0\r\n\r\n")
            self.assertEqual(agent.receive("request"), {"backend": "db"})
            mine, theirs = socket.socketpair()
            agent.tell("grant", ready({"redis": {"database": 0}}), [theirs.fileno()])
            theirs.close()
            agent.receive("ack")
            self.assertTrue(client.recv(4096).decode().startswith("HTTP/1.0 200"))
            self.assertEqual(mine.recv(5), b"hello")
        # The agent refuses a further one, or grants one that this module cannot use.
        with agent.connect() as client:
            client.sendall(b"GET /backend HTTP/1.0\r\n\r\n")
            agent.receive("request")
            agent.tell("grant", {"backend": "db", "status": {"failed": {"reason": "the server is full"}}})
            self.assertIn("500", client.recv(4096).decode())
        with agent.connect() as client:
            client.sendall(b"GET /backend HTTP/1.0\r\n\r\n")
            agent.receive("request")
            another, theirs = socket.socketpair()
            agent.tell("grant", ready(tls={"connection": 7, "keys": {}}), [theirs.fileno()])
            theirs.close()
            agent.receive("ack")
            self.assertIn("500", client.recv(4096).decode())
            self.assertEqual(another.recv(1), b"", "closed")
            another.close()
        # It can use a TLS session whose keys the kernel has.
        with agent.connect() as client:
            client.sendall(b"GET /backend HTTP/1.0\r\n\r\n")
            agent.receive("request")
            another, theirs = socket.socketpair()
            agent.tell("grant", ready(tls={"connection": 7}), [theirs.fileno()])
            theirs.close()
            agent.receive("ack")
            self.assertIn("200", client.recv(4096).decode())
            self.assertEqual(another.recv(5), b"hello")
            another.close()
        self.assertEqual(agent.stop(), 0)
        self.assertIn("the server is full", agent.said())
        self.assertIn("remove tls_hand_over", agent.said())
        for end in (ours, mine):
            end.close()

    def test_a_driver_that_is_not_there_is_named(self):
        sys.path.insert(0, SOURCE)
        try:
            from headstart import HeadstartError, _drivers
        finally:
            sys.path.remove(SOURCE)
        with self.assertRaisesRegex(HeadstartError, "pip install 'no-such>=1'"):
            _drivers._driver("no_such_driver", "no-such>=1")

    def test_it_is_frozen_only_without_a_client(self):
        agent = self.agent()
        agent.until_ready()
        with agent.connect() as client:
            while agent.seen()[1] != 1:
                pass
            agent.tell("freeze", {"return_backends": False})
            agent.receive("busy")
            self.assertIn("200", exchange(client))
        agent.receive("served")
        while agent.seen()[1] != 0:
            pass
        agent.tell("freeze", {"return_backends": False})
        agent.receive("quiet")
        with agent.connect() as client:
            agent.tell("thaw", {})
            agent.receive("thawed")
            self.assertIn("200", exchange(client), "a client that came meanwhile is served")
        self.assertEqual(agent.stop(), 0)
        self.assertEqual(agent.said(), "hook: freeze\nhook: thaw\n")

    def test_no_more_are_accepted_than_allowed(self):
        agent = self.agent(concurrency=1)
        agent.until_ready()
        with agent.connect() as first:
            while agent.seen()[1] != 1:
                pass
            with agent.connect() as second:
                second.sendall(b"GET / HTTP/1.0\r\n\r\n")
                second.settimeout(0.2)
                with self.assertRaises(socket.timeout):
                    second.recv(1)
                self.assertEqual(agent.seen()[:3], (1, 1, 1))
                self.assertIn("200", exchange(first))
                second.settimeout(LIMIT)
                self.assertIn(b"200", second.recv(4096))
        self.assertEqual(agent.stop(), 0)

    def test_it_goes_on_without_its_agent(self):
        agent = self.agent()
        agent.until_ready()
        agent.control.close()
        self.assertIn("200", agent.ask())
        self.assertIn("500", agent.ask("/backend"))
        self.assertEqual(agent.stop(), 0)

    def test_a_signal_is_heard_whenever_it_comes(self):
        agent = self.agent("""
            import os, signal, headstart
            def main(function):
                clear = function._places.clear_wakeup
                def clear_after_signal():
                    function._places.clear_wakeup = clear
                    os.kill(os.getpid(), signal.SIGTERM)  # between the last check and this call
                    clear()
                function._places.clear_wakeup = clear_after_signal
                function.serve_connections(lambda connection, address: None)
            headstart.run(main)
        """)
        agent.until_ready()
        self.assertEqual(agent.child.wait(LIMIT), 0, agent.said())

    def test_asgi_applications_are_served(self):
        agent = self.agent(ASGI)
        agent.until_ready()
        self.assertEqual(agent.said().split(), ["lifespan.startup"])
        first = agent.ask("/a%20b?c=d", "x" * 100_000)
        head, _, body = first.partition("\r\n\r\n")
        self.assertEqual(body, "POST /a b c=d 100000")
        self.assertTrue(head.startswith("HTTP/1.1 201 Created\r\n") and "x-a: b" in head, head)
        agent.receive("served")
        self.assertIn("content-length: 14", agent.ask("/known"))
        self.assertTrue(agent.ask("/late").endswith("POST /late  0"))
        for request, answer in [
            (b"HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n", b"Connection: close\r\n\r\n"),
            (b"PUT /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\na: b\r\n\r\n", b"PUT /c  5"),
        ]:
            with agent.connect() as client:
                client.sendall(request)
                self.assertTrue(read_all(client).endswith(answer), request)
        for request, status in [
            (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nContent-Length: 1_0\r\n\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"400"),
            (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabc\r\n", b"400"),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
            (b"GET /raise HTTP/1.1\r\n\r\n", b"500"),
        ]:
            with agent.connect() as client:
                client.sendall(request)
                self.assertIn(status, read_all(client).split(b"\r\n")[0], request[:80])
        # A client that leaves in the middle of its body does no harm.
        with agent.connect() as client:
            client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 10\r\n\r\nabc")
        self.assertTrue(agent.ask("/still").endswith("POST /still  0"))
        self.assertEqual(agent.stop(), 0, agent.said())
        self.assertEqual(agent.said().split()[-1], "lifespan.shutdown")
        self.assertIn("ValueError('no')", agent.said())

    def test_asgi_applications_that_do_not_start_say_why(self):
        agent = self.agent("""
            import headstart
            async def app(scope, receive, send):
                await receive()
                await send({"type": "lifespan.startup.failed", "message": "no database"})
            headstart.run(lambda function: function.serve_asgi(app))
        """)
        agent.receive("hello")
        self.assertEqual(agent.child.wait(LIMIT), 1)
        self.assertIn("the application does not start: no database", agent.said())

    def test_what_it_does_not_understand_it_says(self):
        agent = self.agent("import headstart; headstart.run(lambda function: None)")
        agent.receive("hello")
        agent.control.close()
        self.assertEqual(agent.child.wait(LIMIT), 0, "it took the lease and had nothing to do")
        for wrong, said in [(b"HS\x09\x00{}", "version 9"), (b"GET /", "no message"), (HEAD + b"[]", "cannot be read")]:
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            control.send(wrong)
            environment = {**os.environ, "PYTHONPATH": SOURCE, "HEADSTART_CONTROL_FD": str(theirs.fileno())}
            script = "import headstart; headstart.run(lambda function: None)"
            child = subprocess.run(
                [sys.executable, "-c", script], env=environment, pass_fds=[theirs.fileno()],
                capture_output=True, timeout=LIMIT, text=True,
            )
            self.assertEqual(child.returncode, 1, child)
            self.assertIn(said, child.stderr)
            for end in (control, theirs):
                end.close()

    def test_alone_it_listens_and_connects_by_itself(self):
        with socket.create_server(("127.0.0.1", 0)) as backend:
            free = socket.create_server(("127.0.0.1", 0))
            port = free.getsockname()[1]
            free.close()
            environment = {**os.environ, "PYTHONPATH": SOURCE, "PORT": str(port)}
            environment["HEADSTART_BACKEND_DB_URL"] = f"tcp://127.0.0.1:{backend.getsockname()[1]}"
            environment.pop("HEADSTART_CONTROL_FD", None)
            child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WSGI)], env=environment)
            try:
                while True:
                    try:
                        client = socket.create_connection(("127.0.0.1", port), timeout=LIMIT)
                        break
                    except ConnectionRefusedError:
                        self.assertIsNone(child.poll())
                with client:
                    self.assertIn("alone", exchange(client))
                with socket.create_connection(("127.0.0.1", port), timeout=LIMIT) as client:
                    self.assertIn("tcp", exchange(client, "/backend"))
            finally:
                child.send_signal(signal.SIGTERM)
                self.assertEqual(child.wait(LIMIT), 0)


if __name__ == "__main__":
    unittest.main()
