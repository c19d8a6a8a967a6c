use std::os::unix::fs::PermissionsExt as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A store, and a layout to pull from.
struct Bench {
    files: TempDir,
    layers: Vec<(Value, String)>,
    config: Value,
}

impl Bench {
    fn new() -> Self {
        let files = tempfile::tempdir().unwrap();
        fs::create_dir_all(files.path().join("layout/blobs/sha256")).unwrap();
        let config = json!({"Entrypoint": ["/app"], "Cmd": ["-x"], "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
                            "User": "7", "WorkingDir": "/srv", "Env": ["A=1"]});
        Self { files, layers: Vec::new(), config }
    }

    fn layout(&self) -> PathBuf {
        self.files.path().join("layout")
    }

    fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = digest::of(bytes);
        let hex = digest.strip_prefix("sha256:").unwrap();
        fs::write(self.layout().join("blobs/sha256").join(hex), bytes).unwrap();
        json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": bytes.len()})
    }

    /// A layer with one file.
    fn layer(&mut self, name: &str, content: &str) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        builder.append_data(&mut header, name, content.as_bytes()).unwrap();
        let archive = builder.into_inner().unwrap();
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(&archive).unwrap();
        let layer = self.blob("layer.v1.tar+gzip", &gzip.finish().unwrap());
        self.layers.push((layer, digest::of(&archive)));
    }

    fn write(&self, architecture: &str) {
        let (layers, digests): (Vec<_>, Vec<_>) = self.layers.iter().cloned().unzip();
        let config = json!({"architecture": architecture, "os": "linux", "config": self.config,
                            "rootfs": {"type": "layers", "diff_ids": digests}});
        let config = self.blob("config.v1+json", config.to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let manifest = self.blob("manifest.v1+json", manifest.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [manifest]});
        fs::write(self.layout().join("index.json"), index.to_string()).unwrap();
    }

    fn store(&self) -> Store {
        Store::open(ImageStore(self.files.path().join("store"))).unwrap()
    }

    fn name(&self) -> ImageName {
        ImageName::parse(&format!("oci:{}", self.layout().display())).unwrap()
    }

    fn pull(&self) -> Result<(ImageRecord, bool), ImageError> {
        self.store().pull(&self.name(), &mut |_| ())
    }

    fn files_of_store(&self) -> Vec<String> {
        let store = self.files.path().join("store");
        let all = [store.clone(), store.join("roots"), store.join("refs")];
        let names = all.iter().flat_map(|place| fs::read_dir(place).unwrap().flatten());
        names.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }
}

fn own_architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[test]
fn an_image_is_pulled_once_and_found_by_its_name_until_nothing_needs_it() {
    let mut bench = Bench::new();
    bench.layer("app", "one");
    bench.layer("etc/conf", "two");
    bench.write(own_architecture());
    let mut steps = Vec::new();
    let (record, changed) = bench.store().pull(&bench.name(), &mut |step| steps.push(step)).unwrap();
    assert!(changed);
    assert_eq!(steps.len(), 4, "{steps:?}");
    assert_eq!(record.command, ["/app", "-x"]);
    assert_eq!((&*record.user, &*record.workdir, &record.ports[..]), ("7", "/srv", &[8080][..]));
    let images = ImageStore(bench.files.path().join("store"));
    let (found, rootfs) = images.find(&bench.name()).unwrap();
    assert_eq!(found, record);
    assert_eq!(fs::read_to_string(rootfs.join("etc/conf")).unwrap(), "two");
    assert!(rootfs.join("proc").is_dir());
    let mode = fs::metadata(&images.0).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "files of images belong to any user: {mode:o}");
    let (again, changed) = bench.pull().unwrap();
    assert_eq!((again.bytes, changed), (record.bytes, false));

    // The name stands for another image now. A function still has the first one.
    let held = File::open(rootfs.parent().unwrap().join(CONFIG_FILE)).unwrap();
    held.lock_shared().unwrap();
    bench.layer("new", "three");
    bench.write(own_architecture());
    let (newer, changed) = bench.pull().unwrap();
    assert!(changed && newer.id != record.id);
    assert_eq!(list(&images).unwrap(), std::slice::from_ref(&newer));
    let kept = bench.store().collect().unwrap();
    assert_eq!(kept, Collected { used: vec![record.id.clone()], ..Collected::default() });
    drop(held);
    let collected = bench.store().collect().unwrap();
    assert_eq!((collected.removed, collected.bytes), (vec![record.id], record.bytes));
    let removed = bench.store().remove(&bench.name()).unwrap();
    assert_eq!(removed.removed, [newer.id]);
    assert!(matches!(bench.store().remove(&bench.name()), Err(ImageError::Unknown { .. })));
    assert!(images.find(&bench.name()).unwrap_err().contains(" oci:/"));
    let mut left = bench.files_of_store();
    left.sort();
    assert_eq!(left, ["lock", "refs", "roots"]);
}

#[test]
fn what_is_damaged_or_foreign_changes_nothing() {
    let mut bench = Bench::new();
    bench.layer("app", "one");
    bench.write("riscv64");
    let said = |bench: &Bench| {
        let error = bench.pull().unwrap_err().to_string();
        let mut left = bench.files_of_store();
        left.sort();
        assert_eq!(left, ["lock", "refs", "roots"], "{error}");
        error
    };
    assert!(said(&bench).starts_with("the image is for linux/riscv64, and this node is linux/"));
    bench.write(own_architecture());
    let layer = bench.layers[0].0["digest"].as_str().unwrap().replace("sha256:", "");
    let layer = bench.layout().join("blobs/sha256").join(layer);
    let good = fs::read(&layer).unwrap();
    let mut bad = good.clone();
    *bad.last_mut().unwrap() ^= 1;
    fs::write(&layer, bad).unwrap();
    let error = said(&bench);
    assert!(error.starts_with("layer 1 has the digest sha256:") && error.ends_with("pull again"), "{error}");
    fs::write(&layer, good).unwrap();
    // Its content is not what the configuration says.
    bench.layers[0].1 = format!("sha256:{}", "0".repeat(64));
    bench.write(own_architecture());
    assert!(said(&bench).contains("and not sha256:000000"));
    // So much is never fetched.
    bench.layers[0].0["size"] = json!(33_u64 << 30);
    bench.write(own_architecture());
    assert!(said(&bench).contains("more than 32 GiB of layers"));
    bench.layers.clear();
    fs::write(bench.layout().join("index.json"), "{\"schemaVersion\": 2}").unwrap();
    assert!(said(&bench).starts_with("index is not one of an image"));
    fs::remove_file(bench.layout().join("index.json")).unwrap();
    assert!(said(&bench).contains("index.json: No such file"));
}

#[test]
fn what_an_end_in_the_middle_left_is_removed() {
    let mut bench = Bench::new();
    bench.layer("app", "one");
    bench.write(own_architecture());
    let aside = bench.store().aside();
    fs::create_dir_all(aside.join("image/rootfs/a")).unwrap();
    fs::write(aside.join("blob"), "half").unwrap();
    bench.pull().unwrap();
    assert!(!aside.exists());
}

#[test]
fn a_store_that_others_can_change_is_not_used() {
    let bench = Bench::new();
    let store = bench.files.path().join("store");
    fs::create_dir(&store).unwrap();
    fs::set_permissions(&store, fs::Permissions::from_mode(0o777)).unwrap();
    let error = Store::open(ImageStore(store)).err().unwrap().to_string();
    assert!(error.contains("chmod go-w"), "{error}");
}
