#!/usr/bin/env bash
# npm mariadb: changeUser() fails on a connection that was opened without a database.
#
# One would expect: changeUser({ user }) logs in as that user, without a database if none is named, and
# changeUser({ user, database }) uses that database.
# What happens: COM_CHANGE_USER always carries the name of a database, if need be an empty one. This client
# writes the name only where its login had one (CLIENT_CONNECT_WITH_DB). Elsewhere the server takes the next
# bytes for the name: the number of the collation, a "-" (45) by default, a "." (46) for utf8mb4_bin. The
# answer is 1049 "Unknown database '-'", or 1044 for a user who may not look there, and a database that was
# named in the call is ignored. mysql2 does what one would expect.
#
# Versions: npm mariadb 3.5.4, npm mysql2 3.24.6, Debian 12 mariadb-server-core 10.11.19. Seen 2026-11-30.
# Why it matters: a pool that makes sessions fresh by COM_CHANGE_USER meets such packets from clients as well,
# and a proxy that parses them reads a wrong database, collation and plugin. The error names a database that
# nobody asked for.
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
sql -e "CREATE DATABASE d; CREATE USER u@localhost IDENTIFIED BY 'p'; GRANT ALL ON *.* TO u@localhost"

cat >"$tmp/look.js" <<'JS'
const seen = [];
async function look(name, open, to) {
    const c = await open;
    let said;
    try {
        await c.changeUser({ user: "u", password: "p", ...to });
        const answer = await c.query({ sql: "SELECT USER(), DATABASE()", rowsAsArray: true });
        said = JSON.stringify(Array.isArray(answer[0][0]) ? answer[0][0] : answer[0]);
    } catch (e) {
        said = `error ${e.errno} ${e.sqlMessage}`;
    }
    seen.push(`${name}: ${said}`);
    c.destroy();
}
(async () => {
    const login = (more) => ({ socketPath: process.argv[2], user: "root", ...more });
    const mariadb = (more) => require("mariadb").createConnection(login(more));
    const mysql2 = (more) => require("mysql2/promise").createConnection(login(more));
    const c = await mariadb();
    console.log("server:", c.serverVersion());
    await c.end();
    await look("mariadb, login without database", mariadb(), {});
    await look("mariadb, login without database, change to d", mariadb(), { database: "d" });
    await look("mariadb, the same with another collation", mariadb({ collation: "UTF8MB4_BIN" }), { database: "d" });
    await look("mariadb, login with database mysql, change to d", mariadb({ database: "mysql" }), { database: "d" });
    await look("mysql2, login without database", mysql2(), {});
    await look("mysql2, login without database, change to d", mysql2(), { database: "d" });
    console.log(seen.join("\n"));
    const expected = `mariadb, login without database: error 1049 Unknown database '-'
mariadb, login without database, change to d: error 1049 Unknown database '-'
mariadb, the same with another collation: error 1049 Unknown database '.'
mariadb, login with database mysql, change to d: ["u@localhost","d"]
mysql2, login without database: ["u@localhost",null]
mysql2, login without database, change to d: ["u@localhost","d"]`;
    if (seen.join("\n") !== expected) {
        console.log(`CHANGED: expected\n${expected}`);
        process.exit(1);
    }
})();
JS
NODE_PATH="$tmp/node_modules" node "$tmp/look.js" "$tmp/run/s"
echo "as described"
