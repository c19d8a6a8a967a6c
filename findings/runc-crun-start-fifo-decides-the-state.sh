#!/usr/bin/env bash
# runc and crun: a container that was released by its FIFO stays "created", and delete kills it.
#
# One would expect: the exec.fifo of a created container is used the same way by both runtimes, "state"
# tells whether the program runs, and "delete" without --force refuses to end a program that runs.
# What happens: in runc the container's init opens exec.fifo for writing, blocks in the open, and runs on
# when anybody opens it for reading. In crun it is the other way round: init holds it open for reading and
# runs on when anybody writes to it. Both runtimes take the program's state from the file: "start" removes
# it, and while it is there, "state" says "created". So a container that was released by the FIFO alone
# runs its program, "state" says "created", and "delete" without --force kills the program and succeeds.
# After "start" the same "delete" is refused.
#
# Versions: Debian 12, runc 1.1.5+ds1-1+deb12u1 and crun 1.8.1-1+deb12u1. Seen 2026-11-30.
# Why it matters: who parks created containers may release them by the FIFO to save the start of the
# runtime, and must then know which way it goes, and must not believe "state". A tool that opens the FIFO of
# runc only to look at it starts the container.
#
# Output seen:
#   runc version 1.1.5+ds1
#     created: init holds exec.fifo path only, sleeps in wait_for_partner
#     a reader got 0
#     runs: busybox sleep 60; state: created
#     delete without --force: done, the program is gone
#     after start: exec.fifo is gone; state: running; delete without --force is refused
#   crun version 1.8.1
#     created: init holds exec.fifo for reading, sleeps in poll_schedule_timeout.constprop.0
#     a writer was taken
#     runs: busybox sleep 60; state: created
#     delete without --force: done, the program is gone
#     after start: exec.fifo is gone; state: running; delete without --force is refused
#   as described
set -euo pipefail

[ "$(id -u)" = 0 ] || { echo "needs root, as the runtimes do here"; exit 2; }
command -v runc >/dev/null || { echo "lacks runc: apt-get install runc"; exit 2; }
command -v crun >/dev/null || { echo "lacks crun: apt-get install crun"; exit 2; }
busybox=$(command -v busybox) && ! ldd "$busybox" >/dev/null 2>&1 \
    || { echo "lacks a static busybox: apt-get install busybox-static"; exit 2; }

# A mount namespace of its own: crun 1.8 refuses the layout of cgroups that has v1 and v2 side by side.
if [ -z "${INSIDE:-}" ]; then INSIDE=1 exec unshare --mount --propagation private bash "$0"; fi
umount /sys/fs/cgroup/unified 2>/dev/null || true

tmp=$(mktemp -d)
id="parked-$$"
cleanup() {
    runc --root "$tmp/runc" delete --force "$id" >/dev/null 2>&1 || true
    crun --root "$tmp/crun" delete --force "$id" >/dev/null 2>&1 || true
    rm -rf "$tmp"
}
trap cleanup EXIT
fail() { echo "CHANGED: $*"; exit 1; }

mkdir -p "$tmp/rootfs/bin" "$tmp/rootfs/proc" "$tmp/rootfs/dev"
cp "$busybox" "$tmp/rootfs/bin/busybox"
cat >"$tmp/config.json" <<'JSON'
{ "ociVersion": "1.0.2",
  "process": { "user": { "uid": 0, "gid": 0 }, "args": ["/bin/busybox", "sleep", "60"], "cwd": "/", "env": [] },
  "root": { "path": "rootfs" },
  "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
  "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }] } }
JSON

runtime() {
    case $1 in
        runc) runc --root "$tmp/runc" "${@:2}" ;;
        crun) crun --root "$tmp/crun" --cgroup-manager=disabled "${@:2}" ;;
    esac
}
field() { runtime "$1" state "$id" | python3 -c 'import json, sys; print(json.load(sys.stdin)[sys.argv[1]])' "$2"; }
program() { tr '\0' ' ' <"/proc/$1/cmdline" | grep -o 'busybox sleep 60' || true; }
await_program() {
    for _ in $(seq 100); do
        [ -z "$(program "$1")" ] || return 0
        sleep 0.1
    done
    return 1
}
create() {
    runtime "$1" create --bundle "$tmp" "$id" </dev/null >"$tmp/said" 2>&1 || { cat "$tmp/said"; exit 2; }
    pid=$(field "$1" pid)
    fifo="$tmp/$1/$id/exec.fifo"
    [ -p "$fifo" ] || fail "$1 has no exec.fifo"
    [ -z "$(program "$pid")" ] || fail "$1 runs the program before start"
}
# How the container's init has the FIFO open.
holds() {
    local fd flags
    for fd in "/proc/$pid/fd/"*; do
        [ "$(readlink "$fd")" = "$fifo" ] || continue
        flags=$(sed -n 's/^flags:\s*//p' "/proc/$pid/fdinfo/${fd##*/}")
        if ((flags & 010000000)); then echo "path only"; continue; fi
        case $((flags & 3)) in 0) echo "for reading" ;; 1) echo "for writing" ;; *) echo "for both" ;; esac
    done
}

for rt in runc crun; do
    "$rt" --version | head -1
    create "$rt"
    how=$(holds)
    echo "  created: init holds exec.fifo $how, sleeps in $(cat "/proc/$pid/wchan")"
    case $rt in
        runc)
            [ "$how" = "path only" ] || fail "runc's init holds it $how"
            [ "$(timeout 20 cat "$fifo")" = 0 ] || fail "runc's init does not write 0"
            echo "  a reader got 0" ;;
        crun)
            [ "$how" = "for reading" ] || fail "crun's init holds it $how"
            timeout 20 bash -c 'echo -n 0 >"$0"' "$fifo"
            echo "  a writer was taken" ;;
    esac
    await_program "$pid" || fail "$rt does not run the program after that"
    state=$(field "$rt" status)
    echo "  runs: $(program "$pid"); state: $state"
    [ "$state" = created ] || fail "$rt now says $state"
    runtime "$rt" delete "$id" 2>"$tmp/said" || fail "$rt refuses delete: $(cat "$tmp/said")"
    for _ in $(seq 50); do
        [ -n "$(program "$pid" 2>/dev/null)" ] || break
        sleep 0.1
    done
    [ -z "$(program "$pid" 2>/dev/null)" ] || fail "the program lives on after delete"
    echo "  delete without --force: done, the program is gone"

    create "$rt"
    runtime "$rt" start "$id"
    await_program "$pid" || fail "$rt start does not run the program"
    [ ! -e "$fifo" ] || fail "$rt start leaves exec.fifo"
    state=$(field "$rt" status)
    if runtime "$rt" delete "$id" 2>"$tmp/said"; then fail "$rt deletes what runs"; fi
    echo "  after start: exec.fifo is gone; state: $state; delete without --force is refused"
    [ "$state" = running ] || fail "$rt says $state after start"
    runtime "$rt" delete --force "$id"
done
echo "as described"
