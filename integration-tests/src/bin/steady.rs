//! A well-behaved function without any backend, for tests of the lifecycle.
//!
//! - `GET /` answers with the name of the instance.
//! - `GET /hold/MS` answers so many milliseconds later.
//! - `GET /spin` answers at once, and has the instance use its processor time from then on.

use std::process::ExitCode;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;

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
            .route("/spin", get(spin));
        function.serve(app).await
    })
}

async fn spin() -> &'static str {
    std::thread::spawn(|| {
        loop {
            std::hint::spin_loop();
        }
    });
    "spinning"
}
