use std::io::Read as _;
use std::os::unix::net::UnixStream;

use tracing::subscriber::with_default;

use super::*;

/// Runs `print` while the reader of the log pauses, and returns what was logged.
fn logged(form: Form, print: impl FnOnce(&LogWriter)) -> String {
    let (mut reader, sink) = UnixStream::pair().unwrap();
    let writer = LogWriter::new(form, Box::new(sink));
    writer.start().unwrap();
    let builder = tracing_subscriber::fmt().with_writer(writer.clone());
    let print = || print(&writer);
    match form {
        Form::Text { colours } => with_default(builder.with_ansi(colours).finish(), print),
        Form::Json => with_default(builder.json().finish(), print),
    }
    let reading = thread::spawn(move || {
        let mut text = Vec::new();
        let mut buffer = [0; 4096];
        while !text.ends_with(b"the end\n") {
            let length = reader.read(&mut buffer).unwrap();
            text.extend(&buffer[..length]);
        }
        String::from_utf8(text).unwrap()
    });
    writer.take(b"the end\n", Source::Agent);
    reading.join().unwrap()
}

const TEXT: Form = Form::Text { colours: false };

/// The socket holds some 200 KB, so that a log that writes by itself would wait for ever.
#[test]
fn a_reader_that_pauses_holds_up_nobody_and_lines_of_functions_displace_no_others() {
    let text = logged(TEXT, |_| {
        for number in 0..3000 {
            tracing::info!(target: FUNCTION, "{}", "x".repeat(1000));
            if number % 100 == 0 {
                tracing::info!(target: "headstart::audit", number, "handed over");
            }
        }
    });
    assert_eq!(text.lines().filter(|line| line.contains("handed over")).count(), 30);
    let printed = text.lines().filter(|line| line.contains("xxx")).count();
    assert!(printed > 100 && printed < 1500, "{printed}");
}

#[test]
fn functions_have_a_rate_and_what_is_left_out_is_said() {
    let text = logged(TEXT, |writer| {
        for _ in 0..3 * FUNCTION_LINES_BURST {
            tracing::info!(target: FUNCTION, "x");
        }
        writer.take(b"after\n", Source::Agent);
    });
    let lines = u64::try_from(text.lines().filter(|line| line.ends_with("function: x")).count()).unwrap();
    assert!(lines >= u64::from(FUNCTION_LINES_BURST), "{lines}");
    assert!(lines < 2 * u64::from(FUNCTION_LINES_BURST), "{lines}");
}

#[test]
fn nobody_forges_a_line_or_controls_the_terminal_that_shows_it() {
    let said = "one\n2026-11-30T00:00:00Z  INFO headstart::audit: forged\r\u{1b}[2J\0\u{9b}2J";
    for colours in [false, true] {
        let text = logged(Form::Text { colours }, |_| {
            tracing::info!(target: FUNCTION, function = %said, "{said}");
            tracing::warn!("control socket closed: {said}");
        });
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains(['\r', '\0', '\u{9b}']) && !text.contains("\u{1b}[2J"), "{text:?}");
    }
    let text = logged(Form::Json, |_| tracing::info!(target: FUNCTION, "{said}"));
    assert_eq!(text.lines().count(), 2, "{text}");
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(line["fields"]["message"], said, "nothing is lost");
}
