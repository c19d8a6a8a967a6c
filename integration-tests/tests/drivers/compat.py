"""Does the same with one driver over a direct connection and over a backend socket, and prints what came of it."""

import asyncio, json, os, sys
from importlib.metadata import version

E = os.environ
DIRECT = E["WAY"] == "direct"
PG = dict(host=E["HOST"], port=int(E["PORT"])) if DIRECT else dict(host=E["SOCKET"])
MY = dict(host=E["HOST"], port=int(E["PORT"])) if DIRECT else dict(unix_socket=E["SOCKET"])
LOGIN = dict(user=E["USER_NAME"], database=E["DATABASE"])
if DIRECT and E.get("PASSWORD"):
    LOGIN["password"] = E["PASSWORD"]
seen = []


def see(name, value):
    seen.append(f"{name}: {value}")


def attempt(name, do):
    try:
        see(name, do())
    except Exception as error:
        code = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None) or getattr(error, "errno", None)
        see(name, f"{type(error).__name__} {code or (error.args[0] if error.args else '')}")


def dbapi(connect, mysql=False):
    """Two sessions of a PEP 249 driver, one after the other."""
    for turn in range(2):
        c = connect()
        k = c.cursor()

        def one(sql, *values):
            k.execute(sql, *values)
            return k.fetchone()[0]

        attempt("parameter", lambda: one("select %s + 1", (41,)))
        attempt("text", lambda: one("select %s", ("ä€😀",)))
        attempt("large", lambda: len(one("select repeat('x', 1000000)")))
        k.execute("create temporary table t (i int)")
        for value in (1, 1):
            k.execute("insert into t values (%s)", (value,))
        c.commit()
        k.execute("update t set i = 1")
        see("matched rows", k.rowcount)
        c.rollback()
        attempt("error", lambda: one("select nothing"))
        c.rollback()
        if mysql:
            attempt("mode", lambda: one("select @@sql_mode"))
            names = "concat(@@character_set_client, @@character_set_results, @@collation_connection)"
            attempt("collation", lambda: one("select " + names))
            attempt("user", lambda: one("select user() = current_user()"))
        else:
            attempt("search_path", lambda: one("show search_path"))
            c.rollback()
            k.execute("discard all" if getattr(c, "autocommit", False) is True else "reset all")
            c.commit()
            attempt("after reset", lambda: one("show search_path"))
            attempt("encoding", lambda: one("show client_encoding"))
            attempt("time zone", lambda: one("show timezone"))
        c.close()


def psycopg():
    import psycopg
    dbapi(lambda: psycopg.connect(**conninfo(), options="-c search_path=a"))


def conninfo():
    login = {"dbname" if key == "database" else key: value for key, value in LOGIN.items()}
    return {**PG, **login}


def psycopg2():
    import psycopg2
    dbapi(lambda: psycopg2.connect(**conninfo(), options="-c search_path=a -c timezone=UTC"))


def pg8000():
    import pg8000.dbapi
    where = PG if DIRECT else {"unix_sock": E["SOCKET"] + "/.s.PGSQL.5432"}
    pg8000.dbapi.paramstyle = "format"
    dbapi(lambda: pg8000.dbapi.connect(**where, **LOGIN, startup_params={"search_path": "a"}))


def asyncpg():
    import asyncpg

    async def main():
        settings = {"search_path": "a", "timezone": "Asia/Tokyo", "application_name": "x"}
        pool = await asyncpg.create_pool(**PG, **LOGIN, min_size=1, max_size=1, server_settings=settings)
        for turn in range(3):
            async with pool.acquire() as c:
                see("parameter", await c.fetchval("select $1::int + 1", 41))
                see("settings", [await c.fetchval("show " + name) for name in settings])
                await c.execute("create temporary table if not exists t (i int)")
                await c.copy_records_to_table("t", records=[(1,), (2,)])
                try:
                    await c.fetchval("select pg_sleep(30)", timeout=0.3)
                except asyncio.TimeoutError:
                    see("cancelled", await c.fetchval("select 1"))
        await pool.close()

    asyncio.run(main())


def sqlalchemy(url, **arguments):
    import sqlalchemy as sa
    engine = sa.create_engine(url, connect_args=arguments, pool_size=1)
    for turn in range(2):
        with engine.connect() as c:
            see("parameter", c.execute(sa.text("select :a + 1"), {"a": 41}).scalar())
            c.execute(sa.text("create temporary table if not exists t (i int)"))
            c.execute(sa.text("insert into t values (1), (1)"))
            see("matched rows", c.execute(sa.text("update t set i = 1")).rowcount)
            c.rollback()
    engine.dispose()


def sqlalchemy_psycopg():
    sqlalchemy("postgresql+psycopg://", **conninfo())


def sqlalchemy_pymysql():
    sqlalchemy("mysql+pymysql://", **MY, **LOGIN)


def sqlalchemy_mysqlconnector():
    sqlalchemy("mysql+mysqlconnector://", **MY, **LOGIN)


def django(engine, where):
    import django
    from django.conf import settings
    database = {"ENGINE": engine, "NAME": LOGIN["database"], "USER": LOGIN["user"], **where}
    if "password" in LOGIN:
        database["PASSWORD"] = LOGIN["password"]
    settings.configure(DATABASES={"default": database}, TIME_ZONE="Asia/Tokyo", USE_TZ=True)
    django.setup()
    from django.db import connection
    for turn in range(2):
        with connection.cursor() as k:
            k.execute("create temporary table t (i int)")
            k.execute("insert into t values (1), (1)")
            k.execute("update t set i = 1")
            see("matched rows", k.rowcount)
            k.execute("select %s + 1", [41])
            see("parameter", k.fetchone()[0])
        connection.close()


def django_psycopg():
    django("django.db.backends.postgresql", {"HOST": PG["host"], "PORT": PG.get("port", "")})


def django_pymysql():
    import pymysql
    pymysql.version_info = (2, 2, 1, "final", 0)
    pymysql.install_as_MySQLdb()
    django("django.db.backends.mysql", {"HOST": E["HOST"] if DIRECT else E["SOCKET"], "PORT": MY.get("port", "")})


def pymysql():
    import pymysql
    dbapi(lambda: pymysql.connect(**MY, **LOGIN), mysql=True)
    dbapi(lambda: pymysql.connect(**MY, **LOGIN, client_flag=2 | 256, charset="latin1"), mysql=True)


def mysql_connector():
    import mysql.connector
    dbapi(lambda: mysql.connector.connect(**MY, **LOGIN, use_pure=True), mysql=True)


def aiomysql():
    import aiomysql

    async def main():
        login = {"db" if key == "database" else key: value for key, value in LOGIN.items()}
        pool = await aiomysql.create_pool(**MY, **login, minsize=1, maxsize=1)
        for turn in range(2):
            async with pool.acquire() as c, c.cursor() as k:
                await k.execute("select %s + 1", (41,))
                see("parameter", (await k.fetchone())[0])
        pool.close()
        await pool.wait_closed()

    asyncio.run(main())


def redis():
    import redis
    where = dict(host=E["HOST"], port=int(E["PORT"])) if DIRECT else dict(unix_socket_path=E["SOCKET"])
    if "password" in LOGIN:
        where.update(username=LOGIN["user"], password=LOGIN["password"])
    for protocol in (2, 3):
        r = redis.Redis(**where, protocol=protocol, decode_responses=True)
        see("set", r.set("k", "ä"))
        see("get", r.get("k"))
        with r.pipeline() as p:
            see("transaction", p.incrby("n", 0).get("k").execute())
        attempt("error", lambda: r.execute_command("NOTHING"))
        s = r.pubsub()
        s.subscribe("c")
        s.get_message(timeout=5)
        r.publish("c", "m")
        see("message", s.get_message(timeout=5)["data"])
        r.close()


globals()[sys.argv[1]]()
package = sys.argv[2]
print(json.dumps({"version": version(package), "seen": seen}))
