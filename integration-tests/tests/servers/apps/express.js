const pool = new (require('pg').Pool)();
const app = require('express')();
app.get('/', async (q, r) => r.send((await pool.query("SELECT 'hel' || 'lo' AS word")).rows[0].word));
app.listen(process.env.PORT);
