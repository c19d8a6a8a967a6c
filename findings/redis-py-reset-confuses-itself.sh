#!/usr/bin/env bash
# redis-py 8 loses its way by its own reset(): lists for dicts, another database, a silent reconnect.
#
# One would expect: Redis.reset() sends RESET and the client goes on as after a connect, as it does for
# any reconnect: HELLO 3, SELECT of its database.
# What happens: the client speaks RESP3 unless told otherwise, RESET puts the server back to RESP2 and
# database 0, and the client neither notices nor repairs it. hgetall() returns a list instead of a
# dict, from database 0. The first reply that is nil cannot be read in RESP3: the client throws the
# connection away, connects anew and asks again, without an error. From then on all is right once more.
#
# Versions: PyPI redis 8.1.0 (its own parser, no hiredis), Debian 12 redis-server 7.0.15. Seen 2026-11-30.
# Why it matters: a pool or a proxy that cleans a connection with RESET under a RESP3 client must send
# HELLO and SELECT again, as the client that is handed the connection will not. The damage looks like
# wrong data, and it heals by chance.
#
# Output seen:
#   redis-py 8.1.0 on Redis 7.0.15
#   before reset():      {'database': 'two'}
#   after reset():       ['database', 'zero'] same connection: True
#   get of a key that database 0 lacks: 'two' new connection: True
#   after that:          {'database': 'two'}
#   with protocol=2, after reset(): {'database': 'zero'}
#   as described
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
    --target "$tmp/py" redis==8.1.0
mkdir "$tmp/run"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run"
unprivileged redis-server --port 0 --unixsocket "$tmp/run/s" --dir "$tmp/run" --save "" >"$tmp/log" & pids+=($!)
for _ in $(seq 300); do [ -S "$tmp/run/s" ] && break; sleep 0.1; done

PYTHONPATH="$tmp/py" python3 - "$tmp/run/s" <<'PY'
import sys, redis

def connect(db, **more):
    return redis.Redis(unix_socket_path=sys.argv[1], db=db, single_connection_client=True,
                       decode_responses=True, **more)

connect(0).hset("h", "database", "zero")
r = connect(2)
r.hset("h", "database", "two")
r.set("k", "two")
print("redis-py", redis.__version__, "on Redis", r.info("server")["redis_version"])
first = r.client_id()
before = r.hgetall("h")
print("before reset():     ", before)
r.reset()
after, same = r.hgetall("h"), r.client_id() == first
print("after reset():      ", after, "same connection:", same)
nil, other = r.get("k"), r.client_id() != first
print("get of a key that database 0 lacks:", repr(nil), "new connection:", other)
healed = r.hgetall("h")
print("after that:         ", healed)

two = connect(2, protocol=2)
two.reset()
plain = two.hgetall("h")
print("with protocol=2, after reset():", plain)
ok = (before == healed == {"database": "two"} and after == ["database", "zero"] and same
      and nil == "two" and other and plain == {"database": "zero"})
sys.exit(0 if ok else "CHANGED: reset() leaves the client in another state than described")
PY
echo "as described"
