#!/usr/bin/env bash
# uvicorn: after SIGTERM and a clean shutdown it dies of SIGTERM, or ends with 0, depending on how it was started.
#
# One would expect: a server that handled SIGTERM, finished its requests and ran the application's shutdown ends with
# exit code 0, and uvicorn.run() returns.
# What happens: after all of that it gives the signal its old handler back and raises it again. The process is
# killed by signal 15 (143 in a shell): what follows uvicorn.run() and what atexit registered does not run, although the
# log says "Finished server process". With --workers, with SIGINT, and as process 1 of a container (whose own
# SIGTERM the kernel ignores) the same program ends with 0 and runs both.
#
# Versions: PyPI uvicorn 0.54.0; click 8.5.1, h11 0.16.0. 0.28.1 ends with 0 in each case. Seen 2026-11-30.
# Why it matters: a supervisor that takes 143 or "killed by a signal" for a failure counts each planned stop as a crash,
# but not in an image without an init process. What must run at the end belongs in the lifespan, which runs
# in each case, or needs an own SIGTERM handler that is set before uvicorn starts.
#
# Output seen: as in "expected" below.
set -euo pipefail

command -v unshare >/dev/null || { echo "lacks unshare: apt-get install util-linux"; exit 2; }
unshare --user --map-current-user --pid --fork true || { echo "needs user namespaces"; exit 2; }

tmp=$(mktemp -d)
chmod 755 "$tmp"
trap 'rm -rf "$tmp"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir \
    --target "$tmp/py" uvicorn==0.54.0 click==8.5.1 h11==0.16.0

cat >"$tmp/py/serve.py" <<'PY'
import atexit, signal, sys, uvicorn

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("lifespan ended", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

if __name__ == "__main__":
    atexit.register(print, "atexit", flush=True)
    if sys.argv[3:] == ["handler"]:
        signal.signal(signal.SIGTERM, lambda *_: None)
    uvicorn.run("serve:app", uds=sys.argv[1], workers=int(sys.argv[2]))
    print("after run()", flush=True)
PY

cat >"$tmp/look.py" <<'PY'
import os, signal, socket, subprocess, sys

tmp = sys.argv[1]
environment = {**os.environ, "PYTHONPATH": f"{tmp}/py", "PYTHONDONTWRITEBYTECODE": "1"}
seen = []

def look(name, number, workers=1, before=(), more=()):
    command = [*before, sys.executable, f"{tmp}/py/serve.py", f"{tmp}/socket", str(workers), *more]
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    signal.alarm(120)
    log = ""
    try:
        while log.count("Application startup complete") < workers or "running on" not in log:
            line = p.stdout.readline()
            if not line:
                sys.exit(f"uvicorn did not start:\n{log}")
            log += line
        # A signal that comes before the first answer can end a server that has not quite started.
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{tmp}/socket")
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            with client.makefile("rb") as answer:
                answer.read()
        pid = p.pid
        if before:
            with open(f"/proc/{pid}/task/{pid}/children") as children:
                pid = int(children.read())
        os.kill(pid, number)
        rest = p.stdout.read().splitlines()
        code = p.wait()
    except BaseException:
        p.kill()
        raise
    marks = [line for line in dict.fromkeys(rest) if line in ("lifespan ended", "after run()", "atexit")]
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    seen.append(f"{name}: {', '.join([*marks, how])}")

def late(*_):
    raise TimeoutError("uvicorn takes too long")

signal.signal(signal.SIGALRM, late)
look("SIGTERM", signal.SIGTERM)
look("SIGTERM, a handler was set before", signal.SIGTERM, more=["handler"])
look("SIGTERM, two workers", signal.SIGTERM, workers=2)
container = ["unshare", "--user", "--map-current-user", "--pid", "--fork", "--kill-child"]
look("SIGTERM, as process 1", signal.SIGTERM, before=container)
look("SIGINT", signal.SIGINT)
print(*seen, sep="\n")
expected = [
    "SIGTERM: lifespan ended, signal 15",
    "SIGTERM, a handler was set before: lifespan ended, after run(), atexit, exit code 0",
    "SIGTERM, two workers: lifespan ended, after run(), atexit, exit code 0",
    "SIGTERM, as process 1: lifespan ended, after run(), atexit, exit code 0",
    "SIGINT: lifespan ended, after run(), atexit, exit code 0",
]
if seen != expected:
    sys.exit("\n".join(["CHANGED: expected", *expected]))
PY
python3 "$tmp/look.py" "$tmp"
echo "as described"
