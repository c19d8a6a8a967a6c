"""Sends pg8000's own tests, which know only TCP and the superuser, to the socket of an instance."""

import inspect
import os

import pg8000.core

connect = pg8000.core.CoreConnection.__init__


def connect_to_socket(*arguments, **named):
    asked = inspect.signature(connect).bind(*arguments, **named).arguments
    for word in ("host", "port", "password"):
        asked.pop(word, None)
    asked["user"], asked["database"] = os.environ["PGUSER"], os.environ["PGDATABASE"]
    asked["unix_sock"] = os.path.join(os.environ["PGHOST"], ".s.PGSQL.5432")
    connect(asked.pop("self"), **asked)


pg8000.core.CoreConnection.__init__ = connect_to_socket
