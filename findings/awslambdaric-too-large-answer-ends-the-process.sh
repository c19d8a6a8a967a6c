#!/usr/bin/env bash
# awslambdaric: an answer that the Runtime API finds too large ends the whole runtime process.
#
# One would expect: the Runtime API refuses an answer with 413 (documented), the client logs it or reports it as the
# invocation's error, and asks for the next event.
# What happens: the client raises RuntimeError with the text of the 413 in its own loop, outside the handler. The process
# ends with exit code 1 and never asks again: what the handler's module has initialised is lost, and the next event meets a
# new process.
#
# Versions: PyPI awslambdaric 4.2.2. Seen 2026-11-30.
# Why it matters: with this client each answer that is too large costs an initialisation.
# A handler that checks the size of its answers itself (6 MB) avoids it.
#
# Output seen: as in "expected" below.
set -euo pipefail

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir \
    --target "$tmp/py" awslambdaric==4.2.2

mkdir "$tmp/task"
cat >"$tmp/task/app.py" <<'PY'
def handler(event, context):
    return {"length": event["length"]}
PY

cat >"$tmp/look.py" <<'PY'
import http.server, os, subprocess, sys, threading

tmp, size_refused = sys.argv[1], 2
asked, told = [], []
over = threading.Event()

class Api(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        asked.append(self.path)
        number = len(asked)
        if number > 3:
            over.wait()
            self.close_connection = True
            return
        headers = [("Lambda-Runtime-Aws-Request-Id", f"invocation-{number}"),
                   ("Lambda-Runtime-Deadline-Ms", "99999999999999"),
                   ("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:000000000000:function:f")]
        self.answer(200, b'{"length": 7}', headers)

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        told.append(self.path.rsplit("/", 1)[-1])
        if len(told) == size_refused:
            self.answer(413, b'{"errorMessage": "too large", "errorType": "RequestEntityTooLarge"}')
        else:
            self.answer(202, b'{"status": "OK"}')

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp}/py", "PYTHONDONTWRITEBYTECODE": "1",
               "LAMBDA_TASK_ROOT": f"{tmp}/task", "AWS_LAMBDA_FUNCTION_NAME": "f",
               "AWS_LAMBDA_FUNCTION_VERSION": "1", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "128",
               "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}"}
ended = subprocess.run([sys.executable, "-m", "awslambdaric", "app.handler"], env=environment, cwd=f"{tmp}/task",
                       capture_output=True, text=True, timeout=60)
over.set()
raised = any(line.startswith("RuntimeError") for line in ended.stderr.splitlines())
seen = [f"events asked for: {len(asked)}", f"told: {', '.join(told)}", f"exit code {ended.returncode}, RuntimeError: {raised}"]
print(*seen, sep="\n")
expected = ["events asked for: 2", "told: response, response", "exit code 1, RuntimeError: True"]
if seen != expected:
    sys.exit("\n".join(["CHANGED: expected", *expected, ended.stdout, ended.stderr]))
PY
python3 "$tmp/look.py" "$tmp"
echo "as described"
