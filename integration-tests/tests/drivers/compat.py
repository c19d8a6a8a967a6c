"""Does the same with one driver over a direct connection and as functions of an agent do, and prints what came of it."""

import asyncio, itertools, json, os, re, subprocess, sys
from importlib.metadata import version

E = os.environ
# "held" is a connection that the driver takes over, "port" and "socket" are the agent's.
HELD, SOCKET = E["WAY"] == "held", E["WAY"] == "socket"
PG = dict(host=E["SOCKET"]) if SOCKET else dict(host=E["HOST"], port=int(E["PORT"]))
MY = dict(unix_socket=E["SOCKET"]) if SOCKET else PG
LOGIN = dict(user=E["USER_NAME"], database=E["DATABASE"])
if E.get("PASSWORD"):
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


def held():
    """A backend whose connections are those of the lease, one after the other."""
    import headstart

    class Leased(headstart.Backend):
        def socket(self, wait=10.0):
            return function.backend(f"db{next(numbers)}").socket(wait)

    function, numbers = headstart.attach(), itertools.count()
    return Leased(function, "db")


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
    where = {"unix_sock": E["SOCKET"] + "/.s.PGSQL.5432"} if SOCKET else PG
    pg8000.dbapi.paramstyle = "format"
    dbapi(held().pg8000 if HELD else lambda: pg8000.dbapi.connect(**where, **LOGIN, startup_params={"search_path": "a"}))


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


def sqlalchemy(dialect, **arguments):
    import sqlalchemy as sa
    engine = sa.create_engine(dialect + "://", connect_args=arguments, pool_size=1)
    for turn in range(2):
        with engine.connect() as c:
            see("parameter", c.execute(sa.text("select :a + 1"), {"a": 41}).scalar())
            c.execute(sa.text("create temporary table if not exists t (i int)"))
            c.execute(sa.text("insert into t values (1), (1)"))
            see("matched rows", c.execute(sa.text("update t set i = 1")).rowcount)
            c.rollback()
    engine.dispose()


def sqlalchemy_psycopg():
    sqlalchemy("postgresql+psycopg", **conninfo())


def sqlalchemy_psycopg2():
    sqlalchemy("postgresql+psycopg2", **conninfo())


def sqlalchemy_pg8000():
    sqlalchemy("postgresql+pg8000", **({"unix_sock": E["SOCKET"] + "/.s.PGSQL.5432"} if SOCKET else PG), **LOGIN)


def sqlalchemy_asyncpg():
    import sqlalchemy as sa
    from sqlalchemy.ext.asyncio import create_async_engine

    async def main():
        engine = create_async_engine("postgresql+asyncpg://", connect_args={**PG, **LOGIN}, pool_size=1)
        for turn in range(2):
            async with engine.connect() as c:
                see("parameter", (await c.execute(sa.text("select cast(:a as int) + 1"), {"a": 41})).scalar())
        await engine.dispose()

    asyncio.run(main())


def sqlalchemy_pymysql():
    sqlalchemy("mysql+pymysql", **MY, **LOGIN)


def sqlalchemy_mysqlclient():
    sqlalchemy("mysql+mysqldb", **MY, **LOGIN)


def sqlalchemy_mysqlconnector():
    sqlalchemy("mysql+mysqlconnector", **MY, **LOGIN)


def sqlalchemy_mariadb():
    sqlalchemy("mariadb+mariadbconnector", **MY, **LOGIN)


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


def django_psycopg2():
    sys.modules["psycopg"] = None  # Django takes the newer one if it is there
    django_psycopg()


def django_mysql(engine="django.db.backends.mysql"):
    django(engine, {"HOST": E["SOCKET"] if SOCKET else E["HOST"], "PORT": MY.get("port", "")})


def django_pymysql():
    import pymysql
    pymysql.version_info = (2, 2, 1, "final", 0)
    pymysql.install_as_MySQLdb()
    django_mysql()


def django_mysqlconnector():
    django_mysql("mysql.connector.django")


def pymysql():
    import pymysql
    if HELD:
        return dbapi(held().pymysql, mysql=True)
    dbapi(lambda: pymysql.connect(**MY, **LOGIN), mysql=True)
    dbapi(lambda: pymysql.connect(**MY, **LOGIN, client_flag=2 | 256, charset="latin1"), mysql=True)


def mysqlclient():
    import MySQLdb
    dbapi(lambda: MySQLdb.connect(**MY, **LOGIN), mysql=True)
    dbapi(lambda: MySQLdb.connect(**MY, **LOGIN, client_flag=2 | 256, charset="latin1"), mysql=True)


def mariadb():
    import mariadb
    dbapi(lambda: mariadb.connect(**MY, **LOGIN), mysql=True)


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
    where = dict(unix_socket_path=E["SOCKET"]) if SOCKET else PG
    if "password" in LOGIN:
        where.update(username=LOGIN["user"], password=LOGIN["password"])
    for protocol in (2,) if HELD else (2, 3):
        r = held().redis(decode_responses=True) if HELD else redis.Redis(**where, protocol=protocol, decode_responses=True)
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


def glide():
    from glide import Batch, GlideClient, GlideClientConfiguration, NodeAddress, ServerCredentials

    async def main():
        login = ServerCredentials(LOGIN["password"], LOGIN["user"]) if "password" in LOGIN else None
        nodes = [NodeAddress(PG["host"], PG["port"])]
        c = await GlideClient.create(GlideClientConfiguration(nodes, credentials=login, request_timeout=30_000))
        see("set", await c.set("k", "ä"))
        see("get", (await c.get("k")).decode())
        batch = Batch(is_atomic=True)
        batch.incrby("n", 0)
        batch.get("k")
        see("transaction", await c.exec(batch, raise_on_error=True))
        try:
            see("error", await c.custom_command(["NOTHING"]))
        except Exception as error:
            see("error", type(error).__name__)
        await c.close()

    asyncio.run(main())


def program(*words, stdin=None):
    """What a program of PostgreSQL prints, without its times."""
    where = ["-h", PG["host"], "-U", LOGIN["user"], *(["-p", str(PG["port"])] if "port" in PG else [])]
    environment = {**E, "PGPASSWORD": LOGIN.get("password", ""), "PGOPTIONS": "-c search_path=a", "PGDATABASE": LOGIN["database"]}
    done = subprocess.run([words[0], *where, *words[1:]], env=environment, capture_output=True, text=True, input=stdin)
    return done.stdout + done.stderr


def psql():
    for turn in range(2):
        see("queries", program("psql", "-XAtq", stdin="""
            select :'USER', current_user, 'ä€😀';
            show search_path; show application_name; show client_encoding;
            set search_path = b; reset all; show search_path;
            create temporary table t (i int);
            copy t from stdin;
1
2
\\.
            copy t to stdout;
            select nothing;
        """))


def pgbench():
    for mode in ("simple", "extended", "prepared"):
        said = program("pgbench", "-n", "-M", mode, "-c", "2", "-t", "20", "-C", "-f", "-", stdin="select 1 + :client_id;")
        see(mode, [line for line in said.splitlines() if "processed" in line or "failed" in line or "rror" in line])


globals()[sys.argv[1]]()
package = sys.argv[2]
if package in ("psql", "pgbench"):
    number = re.search(r"[0-9]+", subprocess.run([package, "--version"], capture_output=True, text=True).stdout)[0]
else:
    number = version(package)
print(json.dumps({"version": number, "seen": seen}))
