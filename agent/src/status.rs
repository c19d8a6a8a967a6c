//! `headstart status`: what the running agent says of its functions.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

/// The agent answers from memory.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 16 * 1024 * 1024;

/// Prints a table of the functions, or the API's JSON.
///
/// # Errors
/// When no agent answers at `admin`.
pub fn print(admin: &str, json: bool) -> anyhow::Result<()> {
    let body = get(admin, "/api/v1/functions").with_context(|| {
        format!("no agent answers at {admin}: is it running, and is this its `admin` address (--admin)?")
    })?;
    if json {
        println!("{body}");
        return Ok(());
    }
    let functions: Vec<Value> =
        serde_json::from_str(&body).context("the answer is not a list of functions")?;
    println!(
        "{:<24} {:<22} {:<8} {:<12} {:>8} {:>9}  NOTE",
        "FUNCTION", "LISTEN", "RUNTIME", "STATE", "PREPARED", "INSTANCES"
    );
    for function in &functions {
        let text = |key: &str| function[key].as_str().unwrap_or("-");
        let number = |key: &str| function[key].as_u64().map_or("-".to_owned(), |number| number.to_string());
        let note = function["last_error"].as_str().or(function["reason"].as_str()).unwrap_or_default();
        println!(
            "{:<24} {:<22} {:<8} {:<12} {:>8} {:>9}  {note}",
            text("name"),
            text("listen"),
            text("runtime"),
            text("state"),
            number("prepared"),
            number("instances"),
        );
    }
    Ok(())
}

/// One request of HTTP/1.0 (RFC 1945): the answer ends with the connection.
fn get(admin: &str, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(admin)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(ANSWER_MAX).read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("it does not speak HTTP") };
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("it answers with status {status}: {}", body.trim());
    }
    Ok(body.to_owned())
}
