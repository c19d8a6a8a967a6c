const c = require('cluster');
if (c.isPrimary) { c.fork(); c.fork(); }
else require('http').createServer((q, r) => r.end('hello')).listen(process.env.PORT)
