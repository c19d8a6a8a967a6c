#!/usr/bin/env bash
# MariaDB: CLIENT_IGNORE_SPACE counts until the first COM_CHANGE_USER or COM_RESET_CONNECTION, and never again.
#
# One would expect: capabilities belong to the connection. Both commands make a session equal to a new one of
# that connection, so what a capability switched on at the login is on afterwards.
# What happens: the login with CLIENT_IGNORE_SPACE adds IGNORE_SPACE to sql_mode. Both commands set sql_mode back
# to the server's default, without it, although the connection still has the capability: CLIENT_FOUND_ROWS, which
# the same clients send, goes on to count. SELECT COUNT (*), with a space, works after the login; after either
# command it is the syntax error 1064. Neither client notices.
#
# Versions: Debian 12, mariadb-server-core 10.11.19; clients npm mysql2 3.24.6 and npm mariadb 3.5.4, which both send
# the capability without being asked. Seen 2026-11-30.
# Why it matters: a pool that makes sessions fresh by one of these commands hands over two kinds of sessions: a
# query of an application works on a connection at its first use and fails at its second. Such a pool adds
# IGNORE_SPACE to sql_mode itself.
#
# Output seen: as in "expected" below, after the line "server: 10.11.19-MariaDB-0+deb12u1".
set -euo pipefail

for c in mariadbd mariadb mariadb-install-db; do
    command -v "$c" >/dev/null || { echo "lacks $c: apt-get install mariadb-server-core mariadb-client-core"; exit 2; }
done
for c in node npm; do
    command -v "$c" >/dev/null || { echo "lacks $c: apt-get install nodejs npm"; exit 2; }
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

# Replaces the (sub)shell that calls it.
unprivileged() {
    if [ "$(id -u)" = 0 ]; then exec setpriv --reuid=65534 --regid=65534 --clear-groups -- "$@"; else exec "$@"; fi
}
npm install --silent --no-fund --no-audit --cache "$tmp/npm" --prefix "$tmp" mariadb@3.5.4 mysql2@3.24.6 >/dev/null
mkdir "$tmp/run" "$tmp/run/tmp"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run" "$tmp/run/tmp"
(unprivileged mariadb-install-db --no-defaults --datadir="$tmp/run/data" --skip-test-db \
    --auth-root-authentication-method=normal >"$tmp/install.log" 2>&1)
unprivileged mariadbd --no-defaults --datadir="$tmp/run/data" --tmpdir="$tmp/run/tmp" --skip-networking \
    --socket="$tmp/run/s" --innodb-buffer-pool-size=8M >"$tmp/log" 2>&1 & pids+=($!)
sql() { mariadb --no-defaults --socket="$tmp/run/s" --user=root "$@"; }
for _ in $(seq 600); do sql -e 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.2; done
sql -e "CREATE DATABASE d; CREATE TABLE d.t (a INT); INSERT INTO d.t VALUES (1), (2)"

cat >"$tmp/look.js" <<'JS'
const seen = [];
async function ask(c, sql) {
    try {
        const said = await c.query({ sql, rowsAsArray: true });
        const [first] = Array.isArray(said) ? said : [said];
        if (first.affectedRows !== undefined) return `${first.affectedRows} rows`;
        return String(Array.isArray(first[0]) ? first[0][0] : first[0]);
    } catch (e) {
        return `error ${e.errno}`;
    }
}
async function look(name, c) {
    const mode = (await ask(c, "SELECT @@sql_mode")).split(",").includes("IGNORE_SPACE");
    const count = await ask(c, "SELECT COUNT (*) FROM d.t");
    // With CLIENT_FOUND_ROWS the answer tells the rows that were found, without it those that were changed.
    const found = await ask(c, "UPDATE d.t SET a = a");
    seen.push(`${name}: IGNORE_SPACE ${mode ? "on" : "off"}, COUNT (*) ${count}, UPDATE that changes nothing ${found}`);
}
(async () => {
    const login = { socketPath: process.argv[2], user: "root", database: "d" };
    const open = {
        mysql2: () => require("mysql2/promise").createConnection(login),
        mariadb: () => require("mariadb").createConnection(login),
    };
    for (const [name, connect] of Object.entries(open)) {
        const c = await connect();
        if (name === "mariadb") console.log("server:", c.serverVersion());
        await look(`${name}, login`, c);
        await c.changeUser({ user: "root", database: "d" });
        await look(`${name}, COM_CHANGE_USER`, c);
        await c.end();
        const r = await connect();
        await r.reset();
        await look(`${name}, COM_RESET_CONNECTION`, r);
        await r.end();
    }
    console.log(seen.join("\n"));
    const expected = `mysql2, login: IGNORE_SPACE on, COUNT (*) 2, UPDATE that changes nothing 2 rows
mysql2, COM_CHANGE_USER: IGNORE_SPACE off, COUNT (*) error 1064, UPDATE that changes nothing 2 rows
mysql2, COM_RESET_CONNECTION: IGNORE_SPACE off, COUNT (*) error 1064, UPDATE that changes nothing 2 rows
mariadb, login: IGNORE_SPACE on, COUNT (*) 2, UPDATE that changes nothing 2 rows
mariadb, COM_CHANGE_USER: IGNORE_SPACE off, COUNT (*) error 1064, UPDATE that changes nothing 2 rows
mariadb, COM_RESET_CONNECTION: IGNORE_SPACE off, COUNT (*) error 1064, UPDATE that changes nothing 2 rows`;
    if (seen.join("\n") !== expected) {
        console.log(`CHANGED: expected\n${expected}`);
        process.exit(1);
    }
})();
JS
NODE_PATH="$tmp/node_modules" node "$tmp/look.js" "$tmp/run/s"
echo "as described"
