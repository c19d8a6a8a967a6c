// Speaks with a program at this port in the ways of node, and prints what comes of each.
const http = require("http");
const http2 = require("http2");
const [port, kind] = process.argv.slice(2);
const url = `http://127.0.0.1:${port}/`;
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

const request = (body, path = "", headers = {}) =>
  new Promise((done, failed) => {
    const r = http.request(url + path, { agent, method: "POST", headers }, (answer) => {
      let bytes = 0;
      answer.on("data", (some) => (bytes += some.length));
      answer.on("end", () => done([answer.statusCode, bytes, r.reusedSocket, answer.httpVersion]));
    });
    r.on("error", failed);
    if (!headers.expect) return r.end(body);
    r.on("continue", () => r.end(body));
    r.flushHeaders();
  });

(async () => {
  for (let turn = 0; turn < 3; turn++) console.log("http", await request("x".repeat(70000)));
  console.log("expect", await request("hello", "size", { expect: "100-continue" }));
  agent.destroy();
  const answers = await Promise.all(Array.from({ length: 20 }, async (_, n) => (await fetch(url, { method: "POST", body: `${n}` })).text()));
  console.log("fetch", answers.join());
  if (kind === "rust") {
    const session = http2.connect(url);
    const one = (n) =>
      new Promise((done, failed) => {
        const stream = session.request({ ":method": "POST" });
        let text = "";
        stream.setEncoding("utf8");
        stream.on("data", (some) => (text += some));
        stream.on("end", () => done(text));
        stream.on("error", failed);
        stream.end(`${n}`);
      });
    console.log("http2", (await Promise.all(Array.from({ length: 20 }, (_, n) => one(n)))).join());
    session.close();
  }
})();
