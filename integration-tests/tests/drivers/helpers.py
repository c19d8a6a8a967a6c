"""A function with three drivers, each with the connection that the agent gave; it says who it is to each server."""

import json
import os

import headstart

PRESENT = os.environ["BACKENDS"].split(",")


def main(function: headstart.Function) -> None:
    clients = {}

    def connect(name):
        return getattr(function.backend(name), name)(**({"autocommit": True} if name == "pymysql" else {}))

    def ask(name):
        if name == "redis":
            client = clients[name]
            client.set("k", "v")
            return [client.client_id(), client.acl_whoami(), client.get("k").decode(), client.client_info()["db"]]
        cursor = clients[name].cursor()
        cursor.execute(
            "select pg_backend_pid(), current_user, current_database(), %s"
            if name == "pg8000"
            else "select connection_id(), current_user(), database(), %s",
            ("é" * 100,),
        )
        row = list(cursor.fetchall()[0])
        cursor.close()
        return row[:3] + [len(row[3])]

    def lose(name):
        if name == "redis":
            clients[name].connection_pool.disconnect()
        else:
            clients[name].close()
            clients[name] = connect(name)

    def app(environ, start_response):
        words = environ["PATH_INFO"].strip("/").split("/")
        status, body = "200 OK", None
        try:
            if words[0] == "lose":
                lose(words[1])
            elif words[0] == "wrong":
                getattr(function.backend(words[1]), words[2])()
            else:
                body = {name: ask(name) for name in PRESENT}
        except Exception as error:
            status, body = "500 Error", str(error)
        text = json.dumps(body).encode()
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(text)))])
        return [text]

    for name in PRESENT:
        clients[name] = connect(name)
    function.serve_wsgi(app)


headstart.run(main)
