#!/usr/bin/env bash
# gunicorn: servers of one user take the control socket from each other, whenever one of them forks.
#
# One would expect: the control socket belongs to the server that bound it; a second server gets an
# error or a path of its own; who stops removes only its own socket.
# What happens: the socket is on without being asked for, at one path for all servers of a user
# ($XDG_RUNTIME_DIR/gunicorn.ctl or $HOME/.gunicorn/gunicorn.ctl). A server removes whatever is there
# and binds anew when it starts and after each fork of a worker. So gunicornc talks to the server that
# forked last: a worker that is added or replaced in one server takes the socket from the others. When
# that server stops, the path is gone, and the others have none until they fork again. No server logs a
# warning.
#
# Versions: PyPI gunicorn 27.0.1. The settings say they came with 25.1.0. Seen 2026-11-30.
# Why it matters: gunicornc has reload, worker kill and shutdown, so a script can hit another application
# than the one it reached a second ago. Who parks or forks servers for others gives each a path of its
# own or --no-control-socket, and must not take a listening unix socket for the one the server serves on.
#
# Output seen:
#   server one started; gunicornc reaches          one.sock
#   server two started; gunicornc reaches          two.sock
#   server one added a worker; gunicornc reaches   one.sock
#   server one stopped; gunicornc reaches          nobody
#   server two added a worker; gunicornc reaches   two.sock
#   warnings or errors in either log: none
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
fail() { tail -n 20 "$tmp"/*.log; echo "CHANGED: $*"; exit 1; }

# Replaces the (sub)shell that calls it.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else exec "$@"; fi
}
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir \
    --target "$tmp/py" gunicorn==27.0.1 packaging==25.0
chmod -R a+rX "$tmp/py"
# A python that the unprivileged user can run.
python=$(command -v python3)
(unprivileged env "$python" -c 'import asyncio' 2>/dev/null) || python=/usr/bin/python3

mkdir "$tmp/home"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/home"
cat >"$tmp/py/hello.py" <<'PY'
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
PY
python() {
    unset XDG_RUNTIME_DIR
    unprivileged env HOME="$tmp/home" PYTHONPATH="$tmp/py" PYTHONDONTWRITEBYTECODE=1 "$python" "$@"
}
serve() { python -m gunicorn --bind "unix:$tmp/home/$1.sock" hello:app >"$tmp/$1.log" 2>&1; }
# Which server answers at the path that gunicornc uses by itself: its name, or "nobody".
owner() {
    local said
    said=$(python -c 'import sys; from gunicorn.ctl.cli import main; sys.exit(main())' -c 'show listeners' 2>&1) || true
    grep -o '[a-z]*\.sock' <<<"$said" | head -1 || echo nobody
}
expect() {
    local got
    for _ in $(seq 60); do
        got=$(owner)
        [ "$got" != "$1" ] || break
        sleep 0.5
    done
    printf '%-46s %s\n' "$2" "$got"
    [ "$got" = "$1" ] || fail "$2: $got answers, not $1"
}

serve one & one=$!
pids+=("$one")
expect one.sock "server one started; gunicornc reaches"
serve two & two=$!
pids+=("$two")
expect two.sock "server two started; gunicornc reaches"
kill -TTIN "$one"
expect one.sock "server one added a worker; gunicornc reaches"
kill -TERM "$one"
wait "$one" || true
expect nobody "server one stopped; gunicornc reaches"
kill -0 "$two" || fail "server two is gone"
kill -TTIN "$two"
expect two.sock "server two added a worker; gunicornc reaches"
if grep -iE 'warn|error' "$tmp/one.log" "$tmp/two.log"; then fail "the servers now say something about it"; fi
echo "warnings or errors in either log: none"
echo "as described"
