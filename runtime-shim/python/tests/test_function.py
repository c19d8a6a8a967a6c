"""What every function does with its agent."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import unittest

from support import HEAD, LIMIT, SOURCE, WSGI, AgentTest, exchange


class FunctionTest(AgentTest):
    def test_a_request_is_served_counted_and_told_once(self):
        agent = self.agent()
        agent.until_ready()
        self.assertEqual(agent.seen(), (1, 0, 0, False))
        answer = agent.ask()
        self.assertTrue(answer.startswith("HTTP/1.1 200 OK") and answer.endswith("f-1"), answer)
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
            self.assertTrue(client.recv(4096).decode().startswith("HTTP/1.1 200"))
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
