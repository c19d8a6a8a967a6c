#!/usr/bin/env bash
# Linux: a listening socket that was shut down has its port or not, and its name does not tell which.
#
# One would expect: shutdown(2) ends listening; the address stays bound until the descriptor is closed, as
# getsockname(2) goes on to say; or it is given back, and getsockname says so. How the port was chosen does not matter.
# What happens: it does matter. A port that bind(2) was given by number stays bound: no other socket can bind it, and
# listen(2) on the old one brings the same address back. A port that bind(2) chose (port 0) is free at once for any other
# socket; getsockname still names it, and listen(2) then takes a new one without an error. connect(2) with AF_UNSPEC, which
# also ends listening, does the same to both.
#
# Versions: Linux 6.18.44; only the kernel is involved (python3 3.11 makes the calls). Seen 2026-11-30.
# Why it matters: who shares a listening socket with other processes must expect any of them to do this. To bind the
# address anew works only for one kind, to listen again only for the other, and the name of the socket is no test.
#
# Output seen:
#   shutdown, port chosen by bind: named as before yes, others can bind it yes, listens again at the same no
#   shutdown, port given:          named as before yes, others can bind it no, listens again at the same yes
#   AF_UNSPEC, port chosen by bind: named as before yes, others can bind it yes, listens again at the same no
#   AF_UNSPEC, port given:          named as before yes, others can bind it no, listens again at the same yes
#   as described
set -euo pipefail

command -v python3 >/dev/null || { echo "needs: apt-get install python3"; exit 2; }
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# In a network namespace of its own nobody else takes or frees ports.
isolated=()
if [ "$(id -u)" = 0 ] && command -v unshare >/dev/null && command -v ip >/dev/null; then
    isolated=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh)
fi
cat >"$tmp/listener.py" <<'PY'
import ctypes
import socket

HOST = "127.0.0.1"
libc = ctypes.CDLL(None, use_errno=True)


def bind(port):
    listener = socket.socket()
    listener.bind((HOST, port))
    listener.listen(5)
    return listener


def can_be_bound(port):
    with socket.socket() as other:
        try:
            other.bind((HOST, port))
        except OSError:
            return False
        return True


def shut(listener):
    listener.shutdown(socket.SHUT_RDWR)


def disconnect(listener):
    # A struct sockaddr of zeros: the family is AF_UNSPEC.
    if libc.connect(listener.fileno(), bytes(16), 16) != 0:
        raise OSError(ctypes.get_errno(), "connect")


def word(value):
    return "yes" if value else "no"


for how, end in (("shutdown", shut), ("AF_UNSPEC", disconnect)):
    for kind in ("port chosen by bind:", "port given:         "):
        port = 0
        if kind.startswith("port given"):
            with bind(0) as free:
                port = free.getsockname()[1]
        with bind(port) as listener:
            port = listener.getsockname()[1]
            end(listener)
            named = listener.getsockname()[1] == port
            free = can_be_bound(port)
            listener.listen(5)
            again = listener.getsockname()[1] == port
        print(f"{how}, {kind} named as before {word(named)}, others can bind it {word(free)}, "
              f"listens again at the same {word(again)}")
PY
"${isolated[@]}" python3 "$tmp/listener.py" | tee "$tmp/seen"
cat >"$tmp/expected" <<'TEXT'
shutdown, port chosen by bind: named as before yes, others can bind it yes, listens again at the same no
shutdown, port given:          named as before yes, others can bind it no, listens again at the same yes
AF_UNSPEC, port chosen by bind: named as before yes, others can bind it yes, listens again at the same no
AF_UNSPEC, port given:          named as before yes, others can bind it no, listens again at the same yes
TEXT
cmp -s "$tmp/seen" "$tmp/expected" || { echo "CHANGED: a listener that was ended keeps or loses its port otherwise"; exit 1; }
echo "as described"
