"""A small order book in Python: WSGI and PostgreSQL, with a driver that knows nothing of Headstart.

- `GET /` answers `{"answer": 42, "backend_pid": ...}` with one round trip to the database.
- `GET /orders` lists the newest orders (it needs the table of `../orders/schema.sql`).

The agent's configuration has `backend_sockets = true` for it: libpq finds its session where PGHOST leads. In a container
without a network: `sh rootfs.sh /srv/python-orders`, and then

    runtime = "oci"
    rootfs = "/srv/python-orders"
    command = ["/usr/bin/python3", "/app/orders.py"]

Without an agent: PORT=8081 PGHOST=127.0.0.1 PGUSER=app PGDATABASE=orders PGPASSWORD=... python3 orders.py
"""

import json

import headstart
import psycopg2


def main(function: headstart.Function) -> None:
    # Logged in by the agent: no connect over a network, no TLS, no password in here.
    state = {"db": psycopg2.connect("")}

    def query(sql):
        # A session may have ended while the instance was frozen: one more try with another.
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
