"""A function for all kinds of clients: `GET` answers `hello`, `POST` answers with the body, as it comes, and `POST /size`
with the size of the body, once it is there."""

import sys

import headstart


def wsgi(environ, start_response):
    kind = environ.get("CONTENT_TYPE") or "text/plain"
    start_response("200 OK", [("content-type", kind)])
    if environ["REQUEST_METHOD"] != "POST":
        return [b"hello"]
    body = iter(lambda: environ["wsgi.input"].read(65536), b"")
    return [str(sum(map(len, body))).encode()] if environ["PATH_INFO"] == "/size" else body


async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"text/plain")]
    if scope["method"] != "POST":
        headers.append((b"content-length", b"5"))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if scope["method"] != "POST":
        await send({"type": "http.response.body", "body": b"hello"})
        return
    size, more = 0, True
    while more:
        event = await receive()
        body, more = event.get("body", b""), event.get("more_body", False)
        size += len(body)
        if scope["path"] != "/size":
            await send({"type": "http.response.body", "body": body, "more_body": more})
        elif not more:
            await send({"type": "http.response.body", "body": str(size).encode()})


def main(function: headstart.Function) -> None:
    if sys.argv[1] == "wsgi":
        function.serve_wsgi(wsgi)
    else:
        function.serve_asgi(asgi)


headstart.run(main)
