"""ASGI applications."""

import unittest

from support import LIMIT, AgentTest, read_all

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


class AsgiTest(AgentTest):
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


if __name__ == "__main__":
    unittest.main()
