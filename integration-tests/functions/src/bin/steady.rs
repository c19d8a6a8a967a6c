//! A well-behaved function without any backend, for tests of the lifecycle.
//!
//! - `GET /` answers with the name of the instance.
//! - `GET /hold/MS` answers so many milliseconds later.
//! - `POST /run` runs a program, whose arguments are the lines of the body, and answers with what it prints.
//! - `GET /spin` answers at once, and uses the processor time of the instance from then on.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::routing::{get, post};

fn main() -> ExitCode {
    headstart::run(async |function| {
        let name = function.instance().unwrap_or("alone").to_owned();
        let held = name.clone();
        let app = Router::new()
            .route("/", get(async move || name))
            .route(
                "/hold/{ms}",
                get(async move |Path(ms): Path<u64>| {
                    tokio::time::sleep(Duration::from_millis(ms)).await;
                    held
                }),
            )
            .route("/run", post(run))
            .route("/spin", get(spin));
        function.serve(app).await
    })
}

async fn run(arguments: String) -> (StatusCode, String) {
    let mut arguments = arguments.lines();
    let mut command = tokio::process::Command::new(arguments.next().unwrap_or_default());
    match command.args(arguments).stdin(std::process::Stdio::null()).output().await {
        Ok(output) => {
            let status = if output.status.success() { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
            let text = [output.stdout, output.stderr].concat();
            (status, String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn spin() -> &'static str {
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    "spinning"
}
