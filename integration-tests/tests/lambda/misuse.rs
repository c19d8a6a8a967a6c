//! Programs that speak the Runtime API by themselves, and wrongly.

use headstart_integration_tests::lab::lambda::LambdaFunction;
use headstart_integration_tests::lab::site::LIMIT;
use serde_json::json;

use crate::{NAME, ONE, get, ready, serving};

/// Speaks the Runtime API by itself, wrongly if it is asked to.
const RAW: &str = "\
import http.client, json, os, signal, socket, sys, time
HOST, PORT = os.environ['AWS_LAMBDA_RUNTIME_API'].split(':')
API = '/2018-06-01/runtime/'
def call(method, path, body=None, headers={}):
    connection = http.client.HTTPConnection(HOST, int(PORT))
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
def take():
    _, headers, body = call('GET', API + 'invocation/next')
    return headers['lambda-runtime-aws-request-id'], json.loads(body)['rawPath']
def answer(id, body, headers={}):
    return call('POST', API + 'invocation/' + id + '/response', body, headers)[0]
STREAM = {'Lambda-Runtime-Function-Response-Mode': 'streaming'}
HEAD = {'Content-Type': 'application/vnd.awslambda.http-integration-response'}
def pieces(*texts):
    for text in texts:
        yield text.encode()
def nothing():
    time.sleep(60)
    yield b''
def for_ever(pause):
    while True:
        yield b'x' * 100000
        time.sleep(pause)
";

fn raw(rest: &str, keys: &str) -> LambdaFunction {
    LambdaFunction::script(&format!("{RAW}{rest}"), &format!("{ONE}{keys}")).unwrap()
}

#[test]
fn a_handler_that_misuses_the_runtime_api_harms_itself_alone() {
    if !ready() {
        return;
    }
    let function = raw(
        "\
# More than are served at a time; then it goes on.
many = [socket.create_connection((HOST, int(PORT))) for _ in range(150)]
for one in many: one.close()
seen = [call('POST', API + 'invocation/none/response', b'{}')[0], call('GET', '/nowhere')[0]]
while True:
    id, path = take()
    try:
        if path == '/twice':
            seen.append(call('POST', API + 'invocation/other/response', b'{}')[0])
            seen.append(call('POST', API + 'init/error', b'{}')[0])
            kept = list(seen)
            answer(id, json.dumps(kept))
            seen.append(answer(id, '2'))
        elif path == '/no-json': answer(id, 'no json')
        elif path == '/no-chunks': answer(id, b'x', {'Transfer-Encoding': 'chunked'})
        elif path == '/no-status': answer(id, '{\"statusCode\":\"high\"}')
        elif path == '/endless': answer(id, for_ever(0))
        elif path == '/endless-stream': answer(id, for_ever(0.01), STREAM)
        elif path == '/nothing': answer(id, nothing(), STREAM | HEAD)
        elif path == '/no-head': answer(id, pieces('{\"statusCode\":200}'), STREAM | HEAD)
        elif path == '/deaf':
            answer(id, '1')
            time.sleep(60)
        elif path == '/children':
            for _ in range(5):
                if os.fork() == 0:
                    os.setsid()
                    time.sleep(60)
            time.sleep(60)
        elif path == '/count': answer(id, str(len([p for p in os.listdir('/proc') if p.isdigit()])))
        else: answer(id, '\"fine\"')
    except OSError as error:
        print('the script was cut off:', error, file=sys.stderr)
",
        "timeout = \"1500ms\"\n",
    );
    let agent = serving(&function);
    assert_eq!(get(&function, "/twice").json(), json!([400, 404, 400, 403]), "{}", agent.log());
    assert_eq!(get(&function, "/twice").json(), json!([400, 404, 400, 403, 400, 400, 403]));
    for (path, status, log) in [
        ("/no-json", 502, "cannot be used: it is no JSON"),
        ("/no-chunks", 502, "has been cut off"),
        ("/no-status", 502, "statusCode is no number"),
        ("/endless", 502, "is larger than 6291556 bytes"),
        ("/no-head", 502, "it ends before eight NULs"),
        ("/nothing", 504, "is not streamed: its time is over"),
        ("/children", 504, "has taken longer than `timeout`"),
    ] {
        assert_eq!(get(&function, path).status, status, "{path}\n{}", agent.log());
        agent.wait_log(log, LIMIT).unwrap();
        assert_eq!(get(&function, "/").text(), "\"fine\"", "{path} is over\n{}", agent.log());
    }
    // This process, the handler, and nothing of what it had started.
    assert_eq!(get(&function, "/count").json(), 2);
    let broken = get(&function, "/endless-stream");
    assert!(broken.status == 200 && !broken.complete && !broken.body.is_empty(), "{}", broken.head);
    agent.wait_log("is broken off: its time is over", LIMIT).unwrap();
    assert_eq!(get(&function, "/").text(), "\"fine\"", "{}", agent.log());
    assert_eq!(get(&function, "/deaf").text(), "1");
    assert_eq!(get(&function, "/").status, 503, "{}", agent.log());
    agent.wait_log("the handler is ended: it asks for no event", LIMIT).unwrap();
    assert_eq!(get(&function, "/").text(), "\"fine\"");
    assert!(agent.functions().unwrap()[0]["last_error"].is_null());
    assert!(agent.stop().unwrap().success());
}

#[test]
fn an_extension_is_told_what_it_will_get() {
    if !ready() {
        return;
    }
    let function = raw(
        "\
def bye(*_):
    print('goodbye', flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, bye)
REGISTER = '/2020-01-01/extension/register'
name = {'Lambda-Extension-Name': 'mine'}
status, headers, body = call('POST', REGISTER, b'{\"events\":[]}', name)
said = [status, len(headers['lambda-extension-identifier']), json.loads(body)]
said += [call('POST', REGISTER, b'{\"events\":[\"INVOKE\"]}', name)[0], call('POST', REGISTER, b'{}')[0]]
if os.fork() == 0:
    call('GET', '/2020-01-01/extension/event/next', None, {'Lambda-Extension-Identifier': 'x'})
while True:
    id, path = take()
    answer(id, json.dumps(said))
",
        "",
    );
    let agent = serving(&function);
    let registered = json!({ "functionName": NAME, "functionVersion": "$LATEST", "handler": "app.handler" });
    assert_eq!(get(&function, "/").json(), json!([200, 36, registered, 400, 400]));
    agent.stop_function(NAME).unwrap();
    agent.wait_log("goodbye", LIMIT).unwrap();
    assert!(agent.stop().unwrap().success());
}
