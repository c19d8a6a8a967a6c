const pool = new (require('pg').Pool)();
const app = require('fastify')();
app.get('/', async () => (await pool.query("SELECT 'hel' || 'lo' AS word")).rows[0].word);
app.listen({ port: process.env.PORT, host: '0.0.0.0' });
