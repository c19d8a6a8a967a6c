// Does the same with one driver over a direct connection and as functions of an agent do, and prints what came of it.
const E = process.env;
const socket = E.WAY === "socket";
const where = socket ? {} : { host: E.HOST, port: Number(E.PORT), password: E.PASSWORD };
const login = { user: E.USER_NAME, database: E.DATABASE };
const user = E.PASSWORD ? { username: E.USER_NAME } : {};
const seen = [];
const see = (name, value) => seen.push(`${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
const attempt = async (name, run) => {
  try {
    see(name, await run());
  } catch (error) {
    see(name, `error ${error.code || error.message}`);
  }
};

const drivers = {
  async pg({ Pool }) {
    const pool = new Pool({ ...where, ...(socket ? { host: E.SOCKET } : {}), ...login, max: 1, options: "-c search_path=a" });
    for (let turn = 0; turn < 2; turn++) {
      const c = await pool.connect();
      await attempt("parameter", async () => (await c.query("select $1::int + 1 as n", [41])).rows);
      await attempt("prepared", async () => (await c.query({ name: "p", text: "select $1::text as t", values: ["ä€😀"] })).rows);
      await attempt("error", () => c.query("select nothing"));
      await attempt("search_path", async () => (await c.query("show search_path")).rows);
      await c.query("reset all");
      await attempt("after reset", async () => (await c.query("show search_path")).rows);
      await attempt("several", async () => (await c.query("select 1 as a; select 2 as b")).length);
      c.release();
    }
    await pool.end();
  },
  async postgres(postgres) {
    const sql = postgres({ ...where, ...(socket ? { path: `${E.SOCKET}/.s.PGSQL.5432` } : {}), ...login, max: 1, connection: { search_path: "a" } });
    await attempt("parameter", async () => (await sql`select ${41}::int + 1 as n`)[0]);
    await attempt("error", () => sql`select nothing`);
    await attempt("search_path", async () => (await sql`show search_path`)[0]);
    await attempt("transaction", () => sql.begin(async (t) => (await t`select 1 as one`)[0]));
    const query = sql`select pg_sleep(30)`;
    setTimeout(() => query.cancel(), 300);
    await attempt("cancelled", () => query);
    await sql.unsafe("reset all");
    await attempt("after reset", async () => (await sql`show search_path`)[0]);
    await sql.end();
  },
  async mysql2(_, promise) {
    const path = socket ? { socketPath: E.SOCKET } : {};
    const pool = promise.createPool({ ...where, ...path, ...login, connectionLimit: 1, multipleStatements: true });
    for (let turn = 0; turn < 2; turn++) {
      const c = await pool.getConnection();
      await attempt("parameter", async () => (await c.execute("select ? + 1 as n", [41]))[0]);
      await attempt("text", async () => (await c.query("select ? as t", ["ä€😀"]))[0]);
      await c.query("create temporary table if not exists t (i int)");
      await c.query("insert into t values (1), (1)");
      await attempt("matched rows", async () => (await c.query("update t set i = 1"))[0].affectedRows);
      await attempt("error", () => c.query("select nothing"));
      await attempt("collation", async () => (await c.query("select @@collation_connection as c"))[0]);
      await attempt("several", async () => (await c.query("select 1 as a; select 2 as b"))[0]);
      await attempt("number", async () => (await c.query("select connection_id() as id"))[0][0].id === c.threadId);
      c.release();
    }
    await pool.end();
  },
  async mariadb(mariadb) {
    const path = socket ? { socketPath: E.SOCKET } : {};
    const pool = mariadb.createPool({ ...where, ...path, ...login, connectionLimit: 1, bigIntAsNumber: true, insertIdAsNumber: true });
    for (let turn = 0; turn < 2; turn++) {
      const c = await pool.getConnection();
      await attempt("parameter", async () => (await c.execute("select ? + 1 as n", [41]))[0]);
      await attempt("text", async () => (await c.query("select ? as t", ["ä€😀"]))[0]);
      await c.query("create temporary table if not exists t (i int)");
      await attempt("batch", async () => (await c.batch("insert into t values (?)", [[1], [1]])).affectedRows);
      await attempt("matched rows", async () => (await c.query("update t set i = 1")).affectedRows);
      await attempt("error", () => c.query("select nothing"));
      await attempt("collation", async () => (await c.query("select @@collation_connection as c"))[0]);
      await c.release();
    }
    await pool.end();
  },
  async ioredis(Redis) {
    const options = { lazyConnect: true, ...(socket ? { path: E.SOCKET } : { ...where, ...user }) };
    const r = new Redis(options);
    await attempt("set", () => r.set("k", "ä"));
    await attempt("get", () => r.get("k"));
    await attempt("transaction", () => r.multi().incrby("n", 0).get("k").exec());
    await attempt("script", () => r.eval("return ARGV[1]", 0, "v"));
    await attempt("error", () => r.call("NOTHING"));
    r.disconnect();
  },
  async redis({ createClient }) {
    const to = socket ? { path: E.SOCKET } : { host: E.HOST, port: Number(E.PORT) };
    const r = createClient({ socket: to, ...(E.PASSWORD ? { ...user, password: E.PASSWORD } : {}) });
    await r.connect();
    await attempt("set", () => r.set("k", "ä"));
    await attempt("get", () => r.get("k"));
    await attempt("transaction", () => r.multi().incrBy("n", 0).get("k").exec());
    await attempt("error", () => r.sendCommand(["NOTHING"]));
    await r.close();
  },
};

(async () => {
  const [name] = process.argv.slice(2);
  const promise = name === "mysql2" ? require("mysql2/promise") : undefined;
  const loaded = name === "postgres" || name === "pg" || name === "mariadb" || name === "redis" || name === "ioredis" ? require(name) : undefined;
  await drivers[name](loaded, promise);
  const { version } = JSON.parse(require("fs").readFileSync(`${E.NODE_PATH}/${name}/package.json`));
  console.log(JSON.stringify({ version, seen }));
  process.exit(0);
})();
