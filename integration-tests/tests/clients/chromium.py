"""Speaks with a program at this port as a page in Chromium does, and prints what comes of it."""

import itertools, json, os, subprocess, sys, tempfile

PORT, MIB, CHROMIUM = sys.argv[1:]

PAGE = """(async () => {
  const said = { page: document.body.innerText, protocol: performance.getEntriesByType("navigation")[0].nextHopProtocol };
  const post = (body, path = "/") => fetch(path, { method: "POST", body });
  const hash = async (bytes) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].join();
  said.text = await (await post("hi")).text();
  const body = new Uint8Array(MIB << 20).map((_, n) => n % 251);
  said.upload = await (await post(body, "/size")).text();
  // A browser reads no answer while it sends: one that comes meanwhile must be small.
  const small = body.subarray(0, 256 << 10);
  said.echo = (await hash(await (await post(small)).arrayBuffer())) === (await hash(small));
  const form = new FormData();
  form.append("file", new Blob([small]), "name");
  said.form = (await (await post(form)).arrayBuffer()).byteLength > small.length;
  said.many = (await Promise.all(Array.from({ length: 40 }, async (_, n) => (await post(`${n}`)).text()))).join();
  const left = (await post(small)).body.getReader();
  await left.read();
  await left.cancel();
  said.left = await (await post("still there")).text();
  said.missing = (await fetch("/nothing")).status;
  said.socket = await new Promise((done) => {
    const socket = new WebSocket("ws://" + location.host + "/");
    socket.onopen = () => done("open");
    socket.onclose = (event) => done(`closed ${event.code}`);
  });
  return said;
})()""".replace("MIB", MIB)

reads, commands = os.pipe()
events, writes = os.pipe()
numbers = itertools.count(1)


def messages():
    rest = b""
    while some := os.read(events, 65536):
        *whole, rest = (rest + some).split(b"\0")
        yield from map(json.loads, whole)


def ask(method, session=None, until=None, **parameters):
    """The answer to a command, or the first event `until`."""
    number = next(numbers)
    command = {"id": number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
    os.write(commands, json.dumps(command).encode() + b"\0")
    for message in heard:
        if message.get("id") == number and (not until or "error" in message):
            return message["result"]
        if until and message.get("method") == until:
            return message


with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    words = ["bash", "-c", f'exec "$@" 3<&{reads} 4>&{writes}', "bash", CHROMIUM, *options]
    with subprocess.Popen(words, pass_fds=(reads, writes), stderr=subprocess.DEVNULL) as browser:
        os.close(reads)
        os.close(writes)
        heard = messages()
        target = ask("Target.createTarget", url="about:blank")["targetId"]
        session = ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        ask("Page.enable", session)
        ask("Page.navigate", session, until="Page.loadEventFired", url=f"http://127.0.0.1:{PORT}/")
        answer = ask("Runtime.evaluate", session, expression=PAGE, awaitPromise=True, returnByValue=True)
        for name, value in answer["result"].get("value", {"failed": answer}).items():
            print(f"Chromium, {name}: {value!r}")
        ask("Browser.close")
