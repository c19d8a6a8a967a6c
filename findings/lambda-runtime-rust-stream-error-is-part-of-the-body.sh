#!/usr/bin/env bash
# lambda_runtime (Rust): a stream that fails in the midst reaches the Runtime API as a complete body that ends in the error.
#
# One would expect: the Runtime API's way to report an error of a streamed answer, the trailers
# Lambda-Runtime-Function-Error-Type and -Error-Body, which the request announces in its header `trailer`.
# What happens: the client announces both trailers, and writes them as two lines of the last data chunk, followed by the
# chunk of length 0. A server that follows HTTP sees no trailer: the body is complete, and its last bytes are the lines.
#
# Versions: crates.io lambda_runtime 1.5.0 (hyper, over HTTP/1.1). Seen 2026-11-30. aws-lambda-ric of npm sends real trailers.
# Why it matters: a server of the Runtime API that passes the body on gives its client a whole answer with status 200 and
# two odd lines at its end, where the stream was cut off.
#
# Output seen: as in "expected" below. It compiles for about a minute.
set -euo pipefail

command -v cargo >/dev/null || { echo "lacks cargo: https://rustup.rs"; exit 2; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
mkdir -p "$tmp/handler/src"
cat >"$tmp/handler/Cargo.toml" <<'TOML'
[package]
name = "handler"
version = "0.0.0"
edition = "2024"

[dependencies]
lambda_runtime = { version = "=1.5.0", default-features = false }
serde_json = "1"
tokio = { version = "1", features = ["macros", "rt"] }

[workspace]
TOML
cat >"$tmp/handler/src/main.rs" <<'RUST'
use lambda_runtime::streaming::{Body, Response, channel};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use serde_json::Value;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    lambda_runtime::run(service_fn(async |_: LambdaEvent<Value>| {
        let (mut sender, body) = channel();
        tokio::spawn(async move {
            let _ = sender.send_data("some".into()).await;
            sender.abort();
        });
        Ok::<Response<Body>, Error>(body.into())
    }))
    .await
}
RUST
cargo build --quiet --manifest-path "$tmp/handler/Cargo.toml"

cat >"$tmp/look.py" <<'PY'
import os, socket, subprocess, sys, threading

program = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
listener.settimeout(30)
found, done = [], threading.Event()

def serve(connection):
    connection.settimeout(30)
    file = connection.makefile("rb")
    while line := file.readline():
        method, path = line.split()[:2]
        head = {}
        while (field := file.readline().strip()):
            name, value = field.split(b":", 1)
            name, value = name.strip().lower(), value.strip()
            head[name] = head[name] + b", " + value if name in head else value
        if method == b"GET":
            if found or done.is_set():
                done.wait()
                return
            connection.sendall(b"HTTP/1.1 200 OK\r\nLambda-Runtime-Aws-Request-Id: one\r\n"
                               b"Lambda-Runtime-Deadline-Ms: 99999999999999\r\n"
                               b"Lambda-Runtime-Invoked-Function-Arn: arn:aws:lambda:eu-west-1:000000000000:function:f\r\n"
                               b"Content-Length: 2\r\n\r\n{}")
            continue
        if head.get(b"transfer-encoding") != b"chunked":
            file.read(int(head.get(b"content-length", 0)))
        else:
            body, trailers = b"", []
            while size := int(file.readline(), 16):
                body += file.read(size)
                file.read(2)
            while (field := file.readline().strip()):
                trailers.append(field)
            found.append((path, head, body, trailers))
        connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
        if found:
            done.set()

def accept():
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(connection,), daemon=True).start()

threading.Thread(target=accept, daemon=True).start()
environment = {"PATH": os.environ["PATH"], "AWS_LAMBDA_FUNCTION_NAME": "f", "AWS_LAMBDA_FUNCTION_VERSION": "1",
               "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128", "AWS_LAMBDA_LOG_GROUP_NAME": "g",
               "AWS_LAMBDA_LOG_STREAM_NAME": "s",
               "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:%d" % listener.getsockname()[1]}
handler = subprocess.Popen([program], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    if not done.wait(30):
        sys.exit("no streamed answer came")
finally:
    handler.kill()
    handler.wait()
path, head, body, trailers = found[0]
names = ["Lambda-Runtime-Function-Error-Type", "Lambda-Runtime-Function-Error-Body"]
in_body = [name for name in names if f"{name}: ".encode() in body]
announced = head.get(b"trailer", b"").decode().lower()
seen = [f"announced: {', '.join(name for name in names if name.lower() in announced)}",
        f"trailers: {len(trailers)}", f"in the body: {', '.join(in_body)}"]
print(*seen, sep="\n")
expected = ["announced: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body", "trailers: 0",
            "in the body: Lambda-Runtime-Function-Error-Type, Lambda-Runtime-Function-Error-Body"]
if seen != expected:
    sys.exit("\n".join(["CHANGED: expected", *expected, f"body {body!r}"]))
PY
python3 "$tmp/look.py" "$tmp/handler/target/debug/handler"
echo "as described"
