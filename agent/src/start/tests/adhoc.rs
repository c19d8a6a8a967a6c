use super::bed::{self, Kind};
use super::*;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adhoc() {
    let bed = bed::lay(Kind::Oci).await.unwrap();
    let spec = ContainerSpec {
        function: "adhoc".into(),
        command: vec!["/bin/bash".into(), "-c".into(), std::env::var("ADHOC").unwrap()],
        env: vec![],
        memory_bytes: 512 << 20,
        pids: 200,
    };
    let rt = oci::Oci::new(spec, "/var/tmp/hostroot".into(), bed::find("runc").unwrap(), &bed.state_dir());
    let p = rt.prepare("adhoc-1").await.unwrap();
    p.process.release().await.unwrap();
    println!("EXIT {}", p.process.exited().await);
    p.process.remove().await.unwrap();
}
