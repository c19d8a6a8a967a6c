"""Servers that accept by themselves. Those that are not installed are left out, unless ALL_SERVERS is set."""

import importlib.util
import os
import unittest

from support import AgentTest, read_all

UVICORN = """
    import signal, headstart, uvicorn
    %s
    def main(function):
        # uvicorn raises the signal again when it has stopped.
        signal.signal(signal.SIGTERM, lambda *_: None)
        server = uvicorn.Server(uvicorn.Config(app, loop="asyncio", log_level="warning"))
        server.run(sockets=[function.counting_listener()])
    headstart.run(main)
"""

HYPERCORN = """
    import asyncio, headstart
    from hypercorn.asyncio import serve
    from hypercorn.config import Config, Sockets
    %s
    def main(function):
        config = Config()
        config.create_sockets = lambda: Sockets([], [function.counting_listener()], [])
        asyncio.run(serve(app, config))
    headstart.run(main)
"""

WAITRESS = """
    import signal, sys, headstart, waitress
    def app(environ, start_response):
        start_response("200 OK", [("Content-Length", "4")])
        return [b"here"]
    def main(function):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        waitress.serve(app, sockets=[function.counting_listener()], _quiet=True)
    headstart.run(main)
"""

APP = """
    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            text = (await receive())["text"]
            await send({"type": "websocket.send", "text": text + " " + scope["http_version"]})
            await send({"type": "websocket.close"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"here"})
"""


def installed(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return unittest.skipIf(missing and "ALL_SERVERS" not in os.environ, f"not installed: {missing}")


class ServersTest(AgentTest):
    def lives(self, script):
        """Counted, frozen only without a client, thawed, stopped."""
        agent = self.agent(script, concurrency=2)
        agent.until_ready()
        self.assertEqual(agent.seen()[:2], (1, 0))
        with agent.connect() as first, agent.connect() as second, agent.connect() as third:
            third.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            while agent.seen()[1] != 2:
                pass
            agent.tell("freeze", {"return_backends": False})
            agent.receive("busy")
            for client in (first, second):
                client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                self.assertIn(b"here", read_all(client))
            self.assertIn(b"here", read_all(third), "it comes when there is a place")
        while agent.seen()[1] != 0:
            pass
        self.assertEqual(agent.seen()[2], 3)
        agent.tell("freeze", {"return_backends": False})
        agent.receive("quiet")
        with agent.connect() as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            agent.tell("thaw", {})
            agent.receive("thawed")
            self.assertIn(b"here", read_all(client))
        return agent

    def speaks_websocket(self, agent):
        with agent.connect() as client:
            client.sendall(
                b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
            )
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += client.recv(1)
            self.assertTrue(answer.startswith(b"HTTP/1.1 101 "), answer)
            self.assertEqual(agent.seen()[1], 1)
            client.sendall(b"\x81\x85\0\0\0\0hello")
            self.assertEqual(client.recv(11), b"\x81\x09hello 1.1")
        while agent.seen()[1] != 0:
            pass

    @installed("uvicorn", "websockets")
    def test_uvicorn(self):
        agent = self.lives(UVICORN % APP)
        self.speaks_websocket(agent)
        self.assertEqual(agent.stop(), 0, agent.said())

    @installed("hypercorn", "h2")
    def test_hypercorn(self):
        agent = self.lives(HYPERCORN % APP)
        self.speaks_websocket(agent)
        with agent.connect() as client:
            # A client of HTTP/2 that knows that the server speaks it: settings, and GET /.
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
            client.sendall(b"\0\0\6\1\5\0\0\0\1" + b"\x82\x86\x84\x41\x01a")
            answer = b""
            while not answer.endswith(b"\0\0\4\0\0\0\0\0\1here\0\0\0\0\1\0\0\0\1"):
                part = client.recv(65536)
                self.assertTrue(part, answer)
                answer += part
        self.assertEqual(agent.stop(), 0, agent.said())

    @installed("waitress")
    def test_waitress(self):
        agent = self.lives(WAITRESS)
        self.assertEqual(agent.stop(), 0, agent.said())


if __name__ == "__main__":
    unittest.main()
