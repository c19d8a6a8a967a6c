//! Handlers, as their makers could have written them.

/// The answers that the tests ask for, by the path of the request.
pub(crate) const PYTHON: &str = "\
import base64, json, os, time
def handler(event, context):
    path, method = event['rawPath'], event['requestContext']['http']['method']
    if path == '/event':
        return event
    if path == '/context':
        left = context.get_remaining_time_in_millis()
        return {'name': context.function_name, 'memory': context.memory_limit_in_mb, 'left': left,
                'version': context.function_version, 'id': context.aws_request_id, 'handler': os.environ['_HANDLER'],
                'root': os.environ['LAMBDA_TASK_ROOT'], 'pid': os.getpid()}
    if path == '/back':
        return {'statusCode': 201, 'headers': {'Content-Type': 'application/x-bytes', 'X-Method': method},
                'cookies': ['a=1; Secure', 'b=2'], 'body': event['body'], 'isBase64Encoded': event['isBase64Encoded']}
    if path.startswith('/big/'):
        return 'x' * (int(path[5:]) - 2)
    if path.startswith('/sleep/'):
        time.sleep(int(path[7:]) / 1000)
        return os.getpid()
    if path == '/fail':
        raise ValueError('not today')
    if path == '/exit':
        os._exit(3)
    return 'Hello World!'
";

/// Two invocations that end when both are under way.
pub(crate) const MEETING: &str = "\
import os, time
def handler(event, context):
    open('/tmp/' + context.aws_request_id, 'w').close()
    while len(os.listdir('/tmp')) < 2:
        time.sleep(0.01)
    return os.getpid()
";

/// The same in JavaScript, where they are threads of a process.
pub(crate) const NODE_MEETING: &str = "\
const fs = require('fs');
exports.handler = async (event, context) => {
  fs.writeFileSync('/tmp/' + context.awsRequestId, '');
  while (fs.readdirSync('/tmp').length < 2) await new Promise(resolve => setTimeout(resolve, 10));
  return process.pid;
};
";

/// The client's own example.
pub(crate) const NODE: &str = "\
exports.handler = async (event, context) => {
  if (event.rawPath === '/fail') throw new TypeError('not today');
  if (event.rawPath.startsWith('/big/')) return 'x'.repeat(event.rawPath.slice(5) - 2);
  return { statusCode: 200, body: JSON.stringify({ message: 'Hello from Lambda!' }) };
};
";

/// Answers that are streamed.
pub(crate) const NODE_STREAM: &str = "\
exports.handler = awslambda.streamifyResponse(async (event, stream, context) => {
  if (event.rawPath === '/bare') {
    stream.setContentType('text/plain');
    stream.write('bare');
    return stream.end();
  }
  const head = { statusCode: 202, headers: { 'X-Streamed': 'yes', 'Content-Type': 'text/plain' }, cookies: ['a=1', 'b=2'] };
  stream = awslambda.HttpResponseStream.from(stream, head);
  for (const piece of ['one ', 'two ', 'three']) {
    stream.write(piece);
    await new Promise(resolve => setTimeout(resolve, 20));
  }
  if (event.rawPath === '/broken') throw new RangeError('in the midst');
  stream.end();
});
";

/// A driver that knows nothing of Headstart, in a handler that does not either.
pub(crate) const PSYCOPG: &str = "\
import psycopg
session = psycopg.connect('')
def handler(event, context):
    return session.execute('select 41 + 1').fetchone()[0]
";
