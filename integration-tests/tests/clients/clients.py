"""Speaks with a program at this port in many ways, and prints what comes of each."""

import hashlib, http.client, queue, re, socket, subprocess, sys, tempfile

PORT, MIB = int(sys.argv[1]), int(sys.argv[2])
URL = f"http://127.0.0.1:{PORT}/"
LIMIT = 120


def say(name, value):
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    # What is different at each moment, or at each address.
    value = re.sub(r"(?i)date: \w+, [\w :]* GMT", "date: NOW", str(value)).replace(str(PORT), "PORT")
    print(f"{name}: {value!r}")


def raw(name, request, end=False, before=b"", parts=()):
    """A request as it is, up to the end of the connection, or until the program is silent."""
    with socket.create_connection(("127.0.0.1", PORT), LIMIT) as s:
        s.sendall(request)
        got = b""
        if before:
            while before not in got and (some := s.recv(65536)):
                got += some
        for part in parts:
            s.sendall(part)
        if end:
            s.shutdown(socket.SHUT_WR)
        try:
            while some := s.recv(65536):
                got += some
        except ConnectionResetError:
            got += b"(reset)"
    say(name, list(answers(got)))


def answers(got):
    """Heads and bodies, without the way in which a body was cut."""
    while got:
        head, _, got = got.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        if b"transfer-encoding: chunked" in head.lower():
            body, size = b"", 1
            while size:
                size, _, got = got.partition(b"\r\n")
                size = int(size or b"0", 16)
                body, got = body + got[:size], got[size + 2 :]
        else:
            size = int(length[1]) if length else 0 if head[9:10] == b"1" and b"upgrade" not in head.lower() else len(got)
            body, got = got[:size], got[size:]
        yield head, body


def head(method="GET", path="/", *more, close=True):
    lines = [f"{method} {path} HTTP/1.1", "host: x", *more, *(["connection: close"] if close else [])]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def run(name, *words, stdin=None, find=None):
    done = subprocess.run(words, capture_output=True, input=stdin, timeout=LIMIT)
    said = done.stdout + done.stderr
    if find:
        said = b"\n".join(re.findall(find, said))
    say(name, (done.returncode, said if len(said) < 5000 else (len(said), hashlib.sha256(said).hexdigest())))


def curl(name, *words, stdin=None):
    run(name, "curl", "-sS", "--max-time", str(LIMIT), *words, stdin=stdin)


raw("one request", head())
raw("of HTTP/1.0", b"GET / HTTP/1.0\r\n\r\n")
raw("another method", head("DELETE"))
raw("pipelined", head(close=False) * 3 + head())
raw("half closed", head(close=False), end=True)
raw("half closed, with a body", head("POST", "/", "content-length: 5", close=False) + b"hello", end=True)
raw("chunked", head("POST", "/", "transfer-encoding: chunked") + b"5;x=y\r\nhello\r\n0\r\nt: v\r\n\r\n")
raw("expect", head("POST", "/size", "content-length: 5", "expect: 100-continue"), before=b"\r\n\r\n", parts=[b"hello"])
raw("in pieces", head("POST", "/", "content-length: 5"), parts=[b"he", b"l", b"lo"])
raw("no HTTP", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", end=True)
raw("bad length", head("POST", "/", "content-length: x"), end=True)
raw("a long head", head("GET", "/", "x: " + "y" * 30000), end=True)
if sys.argv[3] == "rust":
    upgrade = head("GET", "/upgrade", "upgrade: echo", "connection: upgrade", close=False)
    raw("upgrade", upgrade, before=b"\r\n\r\n", parts=[b"one ", b"two"], end=True)

c = http.client.HTTPConnection("127.0.0.1", PORT, timeout=LIMIT)
for turn in range(3):
    c.request("POST", "/", body=b"x" * 100_000)
    local = c.sock.getsockname()
    r = c.getresponse()
    say("http.client", (r.status, len(r.read()), r.will_close, turn and local == first))
    first = local
c.close()

curl("curl, keep-alive", "-w", "%{http_code} %{num_connects} %{http_version}\n", URL, URL, URL)
curl("curl, head", "-I", URL)
curl("curl, HTTP/1.0", "-0", "-i", URL)
curl("curl, offers h2", "--http2", "-w", "%{http_code}", URL)
with tempfile.NamedTemporaryFile() as file:
    for part in range(MIB):
        file.write(bytes([part % 251]) * 1048576)
    file.flush()
    for name, more in (("by length", []), ("chunked", ["-H", "transfer-encoding: chunked"]), ("h2", ["--http2-prior-knowledge"])):
        if name == "h2" and sys.argv[3] != "rust":
            continue
        whole = hashlib.sha256()
        words = ["curl", "-sS", *more, "-H", "content-type: a/b", "-w", "%{stderr}%{http_code} %{content_type} %{size_upload}", "--data-binary", "@" + file.name]
        if MIB > 100:
            words[-2:] = ["-X", "POST", "--request-target", "/", "-T", file.name]  # curl takes the other into memory
        with subprocess.Popen([*words, URL], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as sent:
            for some in iter(lambda: sent.stdout.read(1 << 20), b""):
                whole.update(some)
            say(f"curl, {MIB} MiB, {name}", (sent.stderr.read(), whole.hexdigest()))
            same = hashlib.sha256()
            file.seek(0)
            for some in iter(lambda: file.read(1 << 20), b""):
                same.update(some)
            assert whole.hexdigest() == same.hexdigest(), name
curl("curl, a body that waits", "-H", "expect: 100-continue", "--data-binary", "@-", URL + "size", stdin=b"z" * 1_500_000)

counts = rb"requests:.*|status codes:.*"
run("h2load, HTTP/1.1", "h2load", "--h1", "-n", "60", "-c", "4", URL, find=counts)
if sys.argv[3] == "rust":
    run("h2load, h2", "h2load", "-n", "200", "-c", "4", "-m", "10", URL, find=counts)
    grpc = ["-H", "te: trailers", "-H", "content-type: application/grpc", "--data-binary", "@-"]
    curl("curl, as gRPC does", "--http2-prior-knowledge", "-i", *grpc, URL, stdin=b"\0\0\0\0\2hi")

    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{PORT}", options=[("grpc.max_receive_message_length", -1)]) as channel:
        unary = channel.unary_unary("/grpc/Echo")
        say("gRPC", unary(b"hi", timeout=LIMIT))
        for name, size in (("nothing", 0), ("6 MiB", 6 << 20)):
            say(f"gRPC, {name}", len(unary(bytes(size), timeout=LIMIT)))
        calls = [unary.future(b"%d" % n, timeout=LIMIT) for n in range(100)]
        say("gRPC, 100 at a time", b",".join(call.result() for call in calls))
        stream = channel.stream_stream("/grpc/Echo")
        talk, heard = queue.Queue(), []
        replies = stream(iter(talk.get, None), timeout=LIMIT)
        for n in range(20):  # each is answered before the next is sent
            talk.put(b"%d" % n)
            heard.append(next(replies))
        talk.put(None)
        say("gRPC, both ways", (heard, list(replies), replies.code().name))
        try:
            channel.unary_unary("/grpc/None")(b"", timeout=LIMIT)
        except grpc.RpcError as error:
            say("gRPC, no such method", (error.code().name, error.details()))
