#!/usr/bin/env bash
# MariaDB removes the temporary tables of another server that shares its tmpdir.
#
# One would expect: a server that starts removes its own leftovers. The names of the files carry the
# process id of the server (#sql-temptable-PID-...), so it can tell which are its own.
# What happens: a starting server removes every such file in tmpdir, also those of a server that runs.
# The first server keeps its open files, so INSERT and SELECT go on as if nothing were wrong. A statement
# that opens the table once more (a self-join) fails with 1017, and DROP calls the table unknown (1051)
# although it was read a moment before. Aria's tables go the same way; InnoDB's have no files there.
#
# Versions: Debian 12, mariadb-server-core 10.11.19. Seen 2026-11-30.
# Why it matters: tmpdir is TMPDIR or /tmp unless somebody sets it, so two servers of one user share it
# (a test server beside a development server, two containers with one volume for /tmp). Who pools
# sessions sees a session break in the middle, far from the server that was started.
#
# Output seen:
#   server: 10.11.19-MariaDB-0+deb12u1
#   files of the first server's session in tmpdir: 2
#   the same after a second server started:        0
#   rows after the second server started	2
#   ERROR 1017 (HY000) at line 8: Can't find file: 'tmpdir/#sql-temptable-PID-5-0.MYI'
#     (errno: 2 "No such file or directory")
#   rows afterwards	2
#   ERROR 1051 (42S02) at line 10: Unknown table 'd.t'
#   rows of the InnoDB table joined with itself	1
#   as described
set -euo pipefail

for c in mariadbd mariadb mariadb-install-db; do
    command -v "$c" >/dev/null || { echo "lacks $c: apt-get install mariadb-server-core mariadb-client-core"; exit 2; }
done

tmp=$(mktemp -d)
chmod 755 "$tmp"
pids=()
cleanup() {
    for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; done
    wait || true
    rm -rf "$tmp"
}
trap cleanup EXIT
fail() { echo "CHANGED: $*"; exit 1; }

# Replaces the (sub)shell that calls it.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else exec "$@"; fi
}
mkdir "$tmp/tmpdir" "$tmp/data"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/tmpdir" "$tmp/data"

install_data() {
    (unprivileged mariadb-install-db --no-defaults --datadir="$tmp/data/$1" --skip-test-db \
        --auth-root-authentication-method=normal >"$tmp/install-$1.log" 2>&1)
}
serve() {
    unprivileged mariadbd --no-defaults --datadir="$tmp/data/$1" --tmpdir="$tmp/tmpdir" --skip-networking \
        --socket="$tmp/data/$1.sock" --innodb-buffer-pool-size=8M >"$tmp/data/$1.log" 2>&1
}
sql() { mariadb --no-defaults --socket="$tmp/data/$1.sock" --user=root "${@:2}"; }
ready() {
    for _ in $(seq 600); do
        sql "$1" -e 'SELECT 1' >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "server $1 did not start"; tail "$tmp/data/$1.log"; exit 2
}
files() { (cd "$tmp/tmpdir" && find . -name '#sql*' | wc -l); }

install_data first
install_data second
serve first & pids+=($!)
ready first
echo "server: $(sql first -N -e 'SELECT VERSION()')"

echo "touch '$tmp/filled'; while [ ! -e '$tmp/go' ]; do sleep 0.1; done" >"$tmp/pause"
# One session of the first server. It pauses while the second one starts.
sql first --force -N >"$tmp/session" 2>&1 <<SQL &
CREATE DATABASE d; USE d;
CREATE TEMPORARY TABLE t (a INT) ENGINE=MyISAM;
CREATE TEMPORARY TABLE i (a INT) ENGINE=InnoDB;
INSERT INTO t VALUES (1); INSERT INTO i VALUES (1);
system sh "$tmp/pause"
INSERT INTO t VALUES (2);
SELECT 'rows after the second server started', COUNT(*) FROM t;
SELECT 'rows of a self-join', COUNT(*) FROM t AS x, t AS y;
SELECT 'rows afterwards', COUNT(*) FROM t;
DROP TEMPORARY TABLE t;
SELECT 'rows of the InnoDB table joined with itself', COUNT(*) FROM i AS x, i AS y;
SQL
session=$!
pids+=("$session")
for _ in $(seq 300); do [ -e "$tmp/filled" ] && break; sleep 0.1; done
before=$(files)
echo "files of the first server's session in tmpdir: $before"

serve second & pids+=($!)
ready second
after=$(files)
echo "the same after a second server started:        $after"
touch "$tmp/go"
wait "$session" || true
said=$(sed "s|$tmp/||" "$tmp/session")
echo "$said"

[ "$before" = 2 ] || fail "the session's table has $before files in tmpdir, not 2"
[ "$after" = 0 ] || fail "the second server left $after files"
grep -q 'rows after the second server started.2$' <<<"$said" || fail "the table is not usable right after"
grep -q '^ERROR 1017 .*#sql-temptable-' <<<"$said" || fail "the self-join no longer fails with 1017"
grep -q '^ERROR 1051 ' <<<"$said" || fail "DROP no longer fails with 1051"
grep -q 'rows afterwards.2$' <<<"$said" || fail "the table is not readable after the failed self-join"
grep -q 'InnoDB table joined with itself.1$' <<<"$said" || fail "the InnoDB table does not answer"
echo "as described"
