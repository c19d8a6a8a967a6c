//! The committed objects belong to the sources beside them.

use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).expect("the source directory") {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The recipe of `source_hash` in `build.sh`.
fn source_hash() -> String {
    let mut files = rust_files(&crate_dir().join("src"));
    files.push(crate_dir().join("Cargo.toml"));
    let mut named: Vec<(String, PathBuf)> = files
        .into_iter()
        .map(|path| {
            (format!("ebpf/{}", path.strip_prefix(crate_dir()).expect("below the crate").display()), path)
        })
        .collect();
    named.sort();
    let mut hash = Sha256::new();
    for (name, path) in named {
        let content = fs::read(path).expect("a readable source");
        hash.update(format!("{name}\0{}\0", content.len()));
        hash.update(content);
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_objects_were_built_from_these_sources() {
    let recorded = fs::read_to_string(crate_dir().join("prebuilt/SOURCE.sha256")).unwrap();
    assert_eq!(
        recorded.trim(),
        source_hash(),
        "ebpf/prebuilt is older than its sources: run  ebpf/build.sh --update  and commit what changed there"
    );
}

#[test]
fn the_objects_are_small_and_name_no_builders_directories() {
    for name in ["headstart-ebpf.o", "headstart-tag.o", "headstart-guard.o"] {
        let object = fs::read(crate_dir().join("prebuilt").join(name)).unwrap();
        assert!(object.len() < 320 * 1024, "{name}: {} bytes: was debug information left in?", object.len());
        for directory in [env!("CARGO_MANIFEST_DIR"), "/home/", "/root/", "/tmp/", ".cargo/"] {
            let found = object.windows(directory.len()).any(|window| window == directory.as_bytes());
            assert!(!found, "{name} contains a path with {directory}");
        }
    }
}
