// node-postgres as programs use it. PGHOST, PGUSER and PGDATABASE lead it to the socket of an instance.
const assert = require('assert');
const { Client, Pool } = require('pg');

async function main() {
  const client = new Client();
  await client.connect();
  const { rows } = await client.query('select $1::text as word, $2::int + 1 as next', ['hello', 41]);
  assert.deepStrictEqual(rows, [{ word: 'hello', next: 42 }]);

  // A named statement is prepared once.
  const named = { name: 'double', text: 'select $1::int * 2 as twice' };
  for (const number of [1, 2, 3]) {
    const { rows } = await client.query({ ...named, values: [number] });
    assert.strictEqual(rows[0].twice, 2 * number);
  }

  await client.query('create temporary table things (id int primary key, what jsonb, at timestamptz default now())');
  await client.query('begin');
  await client.query('insert into things values (1, $1)', [{ deep: [1, { er: null }] }]);
  await client.query('rollback');
  await client.query('insert into things values (2, $1), (3, null)', [{ deep: 'ä€' }]);
  const things = await client.query('select id, what, at from things order by id');
  assert.deepStrictEqual(things.rows.map((row) => row.id), [2, 3]);
  assert.strictEqual(things.rows[0].what.deep, 'ä€');
  assert(things.rows[0].at instanceof Date);

  // An error is the server's own, and the connection goes on.
  await assert.rejects(client.query('insert into things values (2)'), { code: '23505' });
  await assert.rejects(client.query('select no_such_column'), { code: '42703' });
  await client.query("set statement_timeout = '50ms'");
  await assert.rejects(client.query('select pg_sleep(10)'), { code: '57014' });
  await client.query('set statement_timeout = 0');

  const many = await client.query('select g, repeat($1, 100) as text from generate_series(1, 20000) g', ['x']);
  assert.strictEqual(many.rows.length, 20000);

  const heard = new Promise((resolve) => client.on('notification', resolve));
  await client.query('listen news');
  const other = new Client();
  await other.connect();
  await other.query("notify news, 'it works'");
  assert.strictEqual((await heard).payload, 'it works');

  // Another session cancels this one's query, as the server's administrator would.
  const { rows: [{ pid }] } = await client.query('select pg_backend_pid() as pid');
  const waiting = assert.rejects(client.query('select pg_sleep(30)'), { code: '57014' });
  let cancelled = false;
  while (!cancelled) {
    const asked = "select pg_cancel_backend(pid) as done from pg_stat_activity where pid = $1 and query like '%pg_sleep(30)%'";
    const { rows } = await other.query(asked, [pid]);
    cancelled = rows.length > 0 && rows[0].done;
  }
  await waiting;
  await other.end();
  await client.end();

  const pool = new Pool({ max: 5 });
  const pids = await Promise.all(
    Array.from({ length: 40 }, async () => (await pool.query('select pg_backend_pid() as pid')).rows[0].pid),
  );
  assert(new Set(pids).size <= 5 && new Set(pids).size > 1, `${new Set(pids).size} sessions`);
  await pool.end();

  const wrong = new Client({ database: 'another' });
  await assert.rejects(wrong.connect(), { code: '3D000', message: /the agent's connections lead to the database/ });
  console.log('all as expected');
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
