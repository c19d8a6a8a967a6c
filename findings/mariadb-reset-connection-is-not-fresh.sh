#!/usr/bin/env bash
# MariaDB: COM_RESET_CONNECTION leaves the role as it was set, FOUND_ROWS() and SHOW PROFILES.
#
# One would expect: the reset makes a session equal to a new one of the same user. Its manual names one
# exception, the current database.
# What happens: a new session of a user with a default role has that role. After SET ROLE NONE and the
# reset it has none: a SELECT that each new session may do is refused with 1142. In the same way SET ROLE
# to another role the user has stays on. FOUND_ROWS() still answers for the former user's query, and
# SHOW PROFILES lists its statements, although @@profiling itself is back to 0. LAST_INSERT_ID(), user
# variables, temporary tables and locks are gone, as described.
#
# Versions: Debian 12, mariadb-server-core 10.11.19; client: npm mariadb 3.5.4, whose Connection.reset()
# sends the command. Seen 2026-11-30.
# Why it matters: pools that clean by this command (resetAfterUse of that client's pool, resetOnRelease of
# mysql2's) hand over another role than a login gives. SET ROLE DEFAULT is a syntax error here, so
# a pool that must be sure looks at CURRENT_ROLE() or sends COM_CHANGE_USER, which does restore the role.
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
npm install --silent --no-fund --no-audit --cache "$tmp/npm" --prefix "$tmp" mariadb@3.5.4 >/dev/null
mkdir "$tmp/run"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run"
(unprivileged mariadb-install-db --no-defaults --datadir="$tmp/run/data" --skip-test-db \
    --auth-root-authentication-method=normal >"$tmp/install.log" 2>&1)
mkdir "$tmp/run/tmp"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run/tmp"
unprivileged mariadbd --no-defaults --datadir="$tmp/run/data" --tmpdir="$tmp/run/tmp" --skip-networking \
    --socket="$tmp/run/s" --innodb-buffer-pool-size=8M >"$tmp/log" 2>&1 & pids+=($!)
sql() { mariadb --no-defaults --socket="$tmp/run/s" --user=root "$@"; }
for _ in $(seq 600); do sql -e 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.2; done
sql <<'SQL'
CREATE DATABASE d;
CREATE TABLE d.t (a INT);
INSERT INTO d.t VALUES (1), (2), (3);
CREATE ROLE reader, other;
GRANT SELECT ON d.t TO reader;
CREATE USER u@localhost;
GRANT reader TO u@localhost;
GRANT other TO u@localhost;
SET DEFAULT ROLE reader FOR u@localhost;
SQL

cat >"$tmp/look.js" <<'JS'
const mariadb = require("mariadb");
// With a database: changeUser() of this client needs one from the start.
const connect = (user) =>
    mariadb.createConnection({ socketPath: process.argv[2], user, database: "information_schema", rowsAsArray: true });
const seen = [];
async function look(name, user, before, question, reset) {
    const c = await connect(user);
    for (const s of before) await c.query(s);
    if (reset === "change") await c.changeUser({ user });
    else if (reset) await c.reset();
    let answer;
    try {
        answer = JSON.stringify(await c.query(question), (_, v) => (typeof v === "bigint" ? Number(v) : v));
    } catch (e) {
        answer = `error ${e.errno}`;
    }
    seen.push(`${name}: ${answer}`);
    await c.end();
}
(async () => {
    const c = await connect("root");
    console.log("server:", c.serverVersion());
    await c.end();
    const none = ["SET ROLE NONE"];
    await look("role, new session", "u", [], "SELECT CURRENT_ROLE()", false);
    await look("role, new session and reset", "u", [], "SELECT CURRENT_ROLE()", true);
    await look("role, SET ROLE NONE and reset", "u", none, "SELECT CURRENT_ROLE()", true);
    await look("role, SET ROLE other and reset", "u", ["SET ROLE other"], "SELECT CURRENT_ROLE()", true);
    await look("role, SET ROLE other and COM_CHANGE_USER", "u", ["SET ROLE other"], "SELECT CURRENT_ROLE()", "change");
    await look("SELECT, new session", "u", [], "SELECT a FROM d.t LIMIT 1", false);
    await look("SELECT, SET ROLE NONE and reset", "u", none, "SELECT a FROM d.t LIMIT 1", true);
    const rows = ["SELECT SQL_CALC_FOUND_ROWS a FROM d.t LIMIT 1"];
    await look("FOUND_ROWS(), query and reset", "u", rows, "SELECT FOUND_ROWS()", true);
    const profile = ["SET profiling = 1", "SELECT 'of the former user'"];
    await look("@@profiling, SET to 1 and reset", "u", profile, "SELECT @@profiling", true);
    const listed = "SELECT COUNT(DISTINCT query_id) FROM information_schema.profiling";
    await look("profiles listed, new session", "u", [], listed, false);
    await look("profiles listed, the same and reset", "u", profile, listed, true);
    await look("@x, SET and reset", "u", ["SET @x = 1"], "SELECT @x", true);
    await look("LAST_INSERT_ID(), set and reset", "u", ["SELECT LAST_INSERT_ID(7)"], "SELECT LAST_INSERT_ID()", true);
    console.log(seen.join("\n"));
    const expected = `role, new session: [["reader"]]
role, new session and reset: [["reader"]]
role, SET ROLE NONE and reset: [[null]]
role, SET ROLE other and reset: [["other"]]
role, SET ROLE other and COM_CHANGE_USER: [["reader"]]
SELECT, new session: [[1]]
SELECT, SET ROLE NONE and reset: error 1142
FOUND_ROWS(), query and reset: [[3]]
@@profiling, SET to 1 and reset: [[0]]
profiles listed, new session: [[0]]
profiles listed, the same and reset: [[1]]
@x, SET and reset: [[null]]
LAST_INSERT_ID(), set and reset: [[0]]`;
    if (seen.join("\n") !== expected) {
        console.log(`CHANGED: expected\n${expected}`);
        process.exit(1);
    }
})();
JS
NODE_PATH="$tmp/node_modules" node "$tmp/look.js" "$tmp/run/s"
echo "as described"
