#!/usr/bin/env bash
# MariaDB: behind TLS it takes the capabilities of the SSLRequest and the collation of the handshake response.
#
# One would expect: the SSLRequest asks for TLS; the handshake response, which follows encrypted and has the same
# fields again, says what the client can do. A server that minds a difference refuses the login.
# What happens: the server reads the capabilities in the first packet only. CLIENT_FOUND_ROWS, CLIENT_IGNORE_SPACE and
# CLIENT_MULTI_STATEMENTS do nothing if only the response names them, and are on if only the request does. The
# collation, four bytes further in both packets, is the one of the response. Nobody gets an error or a warning.
# Without TLS the same response works as it says.
#
# Versions: Debian 12, mariadb-server-core 10.11.19; python3 3.11 speaks the protocol. Seen 2026-11-30.
# Why it matters: a client that sends a short SSLRequest (CLIENT_SSL and little else) works until TLS is switched on,
# and then counts rows otherwise or gets 1064 for two statements. A proxy that logs in for its clients must write both
# packets from the same wishes, and one that reads logins must take each field from the packet that counts.
#
# Output seen: as in "expected" below, after the line "server: 10.11.19-MariaDB-0+deb12u1".
set -euo pipefail

for c in mariadbd mariadb mariadb-install-db; do
    command -v "$c" >/dev/null || { echo "lacks $c: apt-get install mariadb-server-core mariadb-client-core"; exit 2; }
done
for c in openssl python3; do
    command -v "$c" >/dev/null || { echo "lacks $c: apt-get install $c"; exit 2; }
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
mkdir "$tmp/run" "$tmp/run/tmp"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run" "$tmp/run/tmp"
(unprivileged mariadb-install-db --no-defaults --datadir="$tmp/run/data" --skip-test-db \
    --auth-root-authentication-method=normal >"$tmp/install.log" 2>&1)
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 1 \
    -keyout "$tmp/run/key" -out "$tmp/run/cert" 2>"$tmp/openssl.log"
[ "$(id -u)" != 0 ] || chown 65534:65534 "$tmp/run/key"
unprivileged mariadbd --no-defaults --ssl-key="$tmp/run/key" --ssl-cert="$tmp/run/cert" \
    --datadir="$tmp/run/data" --tmpdir="$tmp/run/tmp" --skip-networking \
    --socket="$tmp/run/s" --innodb-buffer-pool-size=8M >"$tmp/log" 2>&1 & pids+=($!)
sql() { mariadb --no-defaults --socket="$tmp/run/s" --user=root "$@"; }
for _ in $(seq 600); do sql -e 'SELECT 1' >/dev/null 2>&1 && break; sleep 0.2; done
sql -e "CREATE DATABASE d; CREATE TABLE d.t (a INT); INSERT INTO d.t VALUES (1), (2)"

python3 - "$tmp/run/s" <<'PY'
import socket, ssl, struct, sys

FOUND_ROWS, PROTOCOL_41, IGNORE_SPACE, SSL = 0x2, 0x200, 0x100, 0x800
SECURE_CONNECTION, MULTI_STATEMENTS, PLUGIN_AUTH = 0x8000, 0x10000, 0x80000
LATIN1, UTF8MB4 = 8, 45
LITTLE, MUCH = (0, LATIN1), (FOUND_ROWS | IGNORE_SPACE | MULTI_STATEMENTS, UTF8MB4)

class Connection:
    """A session of root, who has no password. Without a `request` there is no TLS."""

    def __init__(self, request, response):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(60)
        self.socket.connect(sys.argv[1])
        greeting = self.read()
        self.version = greeting[1 : greeting.index(0)].decode().removeprefix("5.5.5-")
        if request:
            self.write(self.head(request, SSL))
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self.socket = context.wrap_socket(self.socket)
        self.write(self.head(response, SSL if request else 0) + b"root\0" + b"\0" + b"mysql_native_password\0")
        answer = self.read()
        if answer[0] != 0:
            sys.exit(f"CHANGED: the login is refused: {answer}")

    def head(self, wishes, more):
        flags, collation = wishes
        flags |= more | PROTOCOL_41 | SECURE_CONNECTION | PLUGIN_AUTH
        return struct.pack("<IIB23x", flags, 1 << 24, collation)

    def write(self, body):
        self.socket.sendall(len(body).to_bytes(3, "little") + bytes([self.sequence]) + body)
        self.sequence += 1

    def exactly(self, length):
        data = b""
        while len(data) < length:
            more = self.socket.recv(length - len(data))
            if not more:
                sys.exit("CHANGED: the server closed the connection")
            data += more
        return data

    def read(self):
        head = self.exactly(4)
        self.sequence = head[3] + 1
        return self.exactly(int.from_bytes(head[:3], "little"))

    def ask(self, sql):
        """The one short field of the one row, the number of rows changed, or the error."""
        self.sequence = 0
        self.write(b"\3" + sql.encode())
        first = self.read()
        if first[0] == 0xFF:
            return f"error {int.from_bytes(first[1:3], 'little')}"
        if first[0] == 0:
            return f"{first[1]} rows"
        packets = [self.read() for _ in range(4)]  # column, end of columns, row, end of rows
        return packets[2][1:].decode()

seen = []
def look(name, request, response):
    c = Connection(request, response)
    if not seen:
        print("server:", c.version)
    cipher = c.ask("SELECT IF(variable_value = '', 'plain', 'TLS') FROM information_schema.session_status"
                   " WHERE variable_name = 'Ssl_cipher'")
    said = [c.ask("SELECT @@character_set_client"), c.ask("SELECT @@sql_mode LIKE '%IGNORE_SPACE%'"),
            c.ask("UPDATE d.t SET a = a"), c.ask("DO 1; DO 2")]
    seen.append(f"{name} ({cipher}): {', '.join(said)}")

look("little in the response", None, LITTLE)
look("much in the response", None, MUCH)
look("much in both", MUCH, MUCH)
look("much in the response only", LITTLE, MUCH)
look("much in the request only", MUCH, LITTLE)
print("character set, IGNORE_SPACE, UPDATE that changes nothing, two statements:", *seen, sep="\n  ")
expected = [
    "little in the response (plain): latin1, 0, 0 rows, error 1064",
    "much in the response (plain): utf8mb4, 1, 2 rows, 0 rows",
    "much in both (TLS): utf8mb4, 1, 2 rows, 0 rows",
    "much in the response only (TLS): utf8mb4, 0, 0 rows, error 1064",
    "much in the request only (TLS): latin1, 1, 2 rows, 0 rows",
]
if seen != expected:
    sys.exit("\n  ".join(["CHANGED: expected", *expected]))
PY
echo "as described"
