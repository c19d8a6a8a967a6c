"""A small order book in Python: WSGI and PostgreSQL, with an unchanged driver.

- `GET /` answers `{"answer": 42, "backend_pid": ...}` with one round trip to the database.
- `GET /orders` lists the newest orders (it needs the table of `../orders/schema.sql`).

The agent's configuration has `backend_sockets = true` for this function: PGHOST names the agent's socket, where libpq
finds its session. In a container without a network: `sh rootfs.sh /srv/python-orders`, and then

    runtime = "oci"
    rootfs = "/srv/python-orders"
    command = ["/usr/bin/python3", "/app/orders.py"]

Without an agent: PORT=8081 PGHOST=127.0.0.1 PGUSER=app PGDATABASE=orders PGPASSWORD=... python3 orders.py
"""

import json

import headstart
import psycopg2


def main(function: headstart.Function) -> None:
    # The agent has logged in: this needs no network, no TLS and no password.
    state = {"db": psycopg2.connect("")}

    def query(sql):
        # A session may have ended while the instance was frozen: try again with another one.
        for last in (False, True):
            try:
                with state["db"], state["db"].cursor() as cursor:
                    cursor.execute(sql)
                    return cursor.fetchall()
            except (psycopg2.OperationalError, psycopg2.InterfaceError):
                if last:
                    raise
                state["db"] = psycopg2.connect("")

    def app(environ, start_response):
        if environ["PATH_INFO"] == "/":
            ((answer, pid),) = query("select 42, pg_backend_pid()")
            body = {"answer": answer, "backend_pid": pid}
        elif environ["PATH_INFO"] == "/orders":
            rows = query("select id, item from orders order by id desc limit 100")
            body = [{"id": id, "item": item} for id, item in rows]
        else:
            start_response("404 Not Found", [("Content-Type", "application/json")])
            return [b"null"]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(body).encode()]

    function.serve_wsgi(app)


headstart.run(main)
