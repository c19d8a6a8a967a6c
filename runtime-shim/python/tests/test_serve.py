"""Bursts, signals, and bodies of requests."""

import os
import signal
import socket
import unittest

from support import LIMIT, WSGI, AgentTest, exchange, read_all
from test_asgi import ASGI

BURST = 200

# Answers when as many clients are served at a time as the test wants.
HOLDS = """
    import threading, headstart
    def main(function):
        together = threading.Barrier(%d)
        def handle(connection, address):
            together.wait(20)
            connection.sendall(b"here")
        function.serve_connections(handle)
    headstart.run(main)
"""

# Three threads can be had, and they answer when a fourth was refused.
FEW = """
    import threading, headstart
    def main(function):
        start, refused, left = threading.Thread.start, threading.Event(), [3]
        def limited(thread):
            if left[0] == 0:
                refused.set()
                raise RuntimeError("can't start new thread")
            left[0] -= 1
            start(thread)
        threading.Thread.start = limited
        def handle(connection, address):
            refused.wait(20)
            connection.sendall(b"here")
        function.serve_connections(handle)
    headstart.run(main)
"""


class ServeTest(AgentTest):
    def burst(self, agent):
        """What so many clients read that ask at a time."""
        clients = [agent.connect() for _ in range(BURST)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answers = [read_all(client) for client in clients]
        for client in clients:
            client.close()
        return answers

    def test_a_burst_is_answered(self):
        for script in (WSGI, ASGI):
            agent = self.agent(script)
            agent.until_ready()
            answers = self.burst(agent)
            self.assertEqual([a for a in answers if not a.startswith(b"HTTP/1.1 20")], [], agent.said())
            while agent.seen()[1] != 0:
                pass
            self.assertEqual(agent.seen()[2], BURST)
            self.assertLess(len(os.listdir(f"/proc/{agent.child.pid}/task")), 64)
            self.assertEqual(agent.stop(), 0, agent.said())

    def test_threads_are_as_many_as_the_agent_allows_or_as_can_be_had(self):
        for script, concurrency in ((HOLDS % 60, 60), (FEW, None)):
            agent = self.agent(script, concurrency=concurrency)
            agent.until_ready()
            clients = [agent.connect() for _ in range(60)]
            self.assertEqual([read_all(client) for client in clients], [b"here"] * 60)
            for client in clients:
                client.close()
            self.assertEqual(agent.stop(), 0)
        self.assertEqual(agent.said().count("3 threads serve the clients"), 1, agent.said())

    def test_clients_that_say_nothing_occupy_no_thread(self):
        agent = self.agent(WSGI.replace("serve_wsgi(app)", "serve_wsgi(app, threads=1)"))
        agent.until_ready()
        silent = [agent.connect() for _ in range(5)]
        self.assertIn("200", agent.ask())
        self.assertIn("200", exchange(silent[0]))
        # After SIGTERM a client that is connected may still ask, and the others do not keep the function.
        agent.child.send_signal(signal.SIGTERM)
        silent[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        self.assertIn(b"200 OK", read_all(silent[1]))
        self.assertEqual(read_all(silent[2]), b"")
        self.assertEqual(agent.child.wait(LIMIT), 0)
        self.assertEqual(agent.seen()[:3], (1, 0, 6))
        for client in silent:
            client.close()

    def test_a_signal_is_heard_whichever_thread_gets_it(self):
        agent = self.agent(WSGI)
        agent.until_ready()
        self.assertIn("200", agent.ask())
        blocked = {}
        for task in os.listdir(f"/proc/{agent.child.pid}/task"):
            with open(f"/proc/{agent.child.pid}/task/{task}/status") as status:
                masks = [int(line.split()[1], 16) for line in status if line.startswith("SigBlk:")]
            blocked[int(task)] = bool(masks[0] & 1 << signal.SIGTERM - 1)
        self.assertFalse(blocked.pop(agent.child.pid))
        self.assertEqual(list(blocked.values()), [True] * 3)
        self.assertEqual(agent.stop(), 0)
        # A library's thread gets it.
        agent = self.agent("""
            import signal, threading, headstart
            def main(function):
                def unblocked():
                    began.wait()
                    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
                began = threading.Event()
                threading.Thread(target=unblocked, daemon=True).start()
                function.serve_connections(lambda connection, address: began.set())
            headstart.run(main)
        """)
        agent.until_ready()
        with agent.connect() as client:
            self.assertEqual(read_all(client), b"")
        self.assertEqual(agent.child.wait(LIMIT), 0, agent.said())


# Says what it has read and which headers it has seen.
BODIES = """
    import headstart
    def app(environ, start_response):
        if environ["PATH_INFO"] == "/unread":
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        body, length = environ["wsgi.input"].read(), environ["CONTENT_LENGTH"]
        forwarded = environ.get("HTTP_X_FORWARDED_FOR")
        text = f"{len(body)} {length} {forwarded} {'HTTP_TRANSFER_ENCODING' in environ}"
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [text.encode()]
    headstart.run(lambda function: function.serve_wsgi(app))
"""


class BodiesTest(AgentTest):
    def ask(self, agent, request):
        with agent.connect() as client:
            client.sendall(request)
            return read_all(client)

    def test_wsgi_applications_get_the_whole_body(self):
        agent = self.agent(BODIES)
        agent.until_ready()
        head = b"POST / HTTP/1.1\r\nHost: a\r\n"
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
        big = b"%x\r\n%s\r\n" % (3 << 20, b"x" * (3 << 20))
        for request, answer in [
            (head + b"\r\n", b"0  None False"),
            (head + b"Content-Length: 5\r\n\r\nhello, and more", b"5 5 None False"),
            (chunked + b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\na: b\r\n\r\n", b"5 5 None False"),
            (chunked + big + b"0\r\n\r\n", b"3145728 3145728 None False"),
            (head + b"X-Forwarded-For: a\r\nX_Forwarded_For: b\r\n\r\n", b"0  a False"),
            (head + b"X_Forwarded_For: b\r\n\r\n", b"0  None False"),
        ]:
            answered = self.ask(agent, request)
            self.assertTrue(answered.startswith(b"HTTP/1.1 200 OK\r\n") and answered.endswith(answer), (request[:80], answered))
        for request, status in [
            (chunked + b"xyz\r\n", b"400"),
            (chunked + b"2\r\nabc\r\n", b"400"),
            (head + b"Content-Length: 1_0\r\n\r\n", b"400"),
            (head + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
            (head + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
            (head + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"501"),
            (chunked + b"%x\r\n" % (2 << 30), b"413"),
            (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        ]:
            self.assertIn(status, self.ask(agent, request).split(b"\r\n")[0], request[:80])
        self.assertEqual(agent.stop(), 0, agent.said())

    def test_a_client_that_expects_to_be_asked_is_asked(self):
        def head(path, more):
            return f"POST {path} HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n{more}\r\n\r\n".encode()

        continues = b"HTTP/1.1 100 Continue\r\n\r\n"
        for script in (BODIES, ASGI):
            agent = self.agent(script)
            agent.until_ready()
            for more, body in [("Content-Length: 5", b"hello"), ("Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n")]:
                with agent.connect() as client:
                    client.sendall(head("/", more))
                    self.assertEqual(client.recv(len(continues), socket.MSG_WAITALL), continues)
                    client.sendall(body)
                    answered = read_all(client)
                    self.assertIn(b"HTTP/1.1 20", answered)
                    self.assertIn(b"5", answered.split(b"\r\n\r\n")[1])
            agent.stop()
        # An application that does not want the body answers at once.
        agent = self.agent(BODIES)
        agent.until_ready()
        self.assertTrue(self.ask(agent, head("/unread", "Content-Length: 5")).startswith(b"HTTP/1.1 403"))

    def test_an_answer_is_not_lost_because_the_client_still_sends(self):
        agent = self.agent(BODIES)
        agent.until_ready()
        with agent.connect() as client:
            client.sendall(b"POST /unread HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n")
            self.assertTrue(client.recv(65536).startswith(b"HTTP/1.1 403"))
            client.sendall(b"x" * 1_000_000)
            client.shutdown(socket.SHUT_WR)
            # A reset would be an error here.
            self.assertEqual(client.recv(65536), b"")


if __name__ == "__main__":
    unittest.main()
