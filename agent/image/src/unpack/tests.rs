use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;

use tar::{Builder, Header};
use tempfile::TempDir;

use super::*;

/// An archive that is written entry by entry, with names as they are.
struct Layer(Builder<Vec<u8>>);

impl Layer {
    fn new() -> Self {
        Self(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        // Its own setters refuse what is hostile.
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.entry(EntryType::Regular, name, "", 0o644, content.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, "", 0o755, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, 0o777, b"")
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, target, 0o644, b"")
    }

    /// What the next entry has beside its header.
    fn extended(mut self, values: &[(&str, &[u8])]) -> Self {
        self.0.append_pax_extensions(values.iter().copied()).unwrap();
        self
    }

    fn archive(self) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.0.into_inner().unwrap()).unwrap();
        file
    }
}

/// A directory for roots, in which `outside` must stay as it is.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("root")).unwrap();
        fs::write(place.path().join("outside"), "safe").unwrap();
        Self(place)
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("root")
    }

    fn unpack(&self, layers: Vec<Layer>) -> Result<u64, ImageError> {
        let mut unpacking = Unpacking::into(Tree::open(&self.root()).unwrap());
        layers.into_iter().try_for_each(|layer| unpacking.layer(&layer.archive()))?;
        Ok(unpacking.left_out)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.root().join(name)).unwrap()
    }

    fn assert_safe(&self) {
        assert_eq!(fs::read_to_string(self.0.path().join("outside")).unwrap(), "safe");
        assert_eq!(fs::read_dir(self.0.path()).unwrap().count(), 2, "something was made outside");
    }
}

#[test]
fn layers_lie_on_each_other() {
    let place = Place::new();
    let lower = Layer::new()
        .directory("./")
        .directory("etc/")
        .file("etc/a", "1")
        .file("etc/b", "1")
        .directory("old/")
        .file("old/x/y", "1")
        .file("kept/a", "1")
        .file("kept/b/c", "1")
        .symlink("lib", "usr/lib")
        .directory("usr/lib")
        .file("changes", "a file")
        .directory("becomes/a/file");
    let upper = Layer::new()
        .file("etc/a", "2")
        .file("etc/.wh.b", "")
        .file(".wh.old", "")
        // What the layer itself brings stays, wherever it stands.
        .file("kept/new", "2")
        .file("kept/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        .file("lib/c", "2")
        .directory("changes")
        .file("becomes", "2")
        .hard_link("usr/same", "/lib/c");
    assert_eq!(place.unpack(vec![lower, upper]).unwrap(), 0);
    assert_eq!(
        (place.read("etc/a"), place.read("kept/new"), place.read("usr/lib/c")),
        ("2".into(), "2".into(), "2".into())
    );
    for gone in ["etc/b", "old", "kept/a", "kept/b", ".wh.old", ".wh..wh.plnk"] {
        assert!(place.root().join(gone).symlink_metadata().is_err(), "{gone}");
    }
    assert!(place.root().join("changes").is_dir() && place.root().join("becomes").is_file());
    let ino = |name: &str| fs::metadata(place.root().join(name)).unwrap().ino();
    assert_eq!(ino("usr/same"), ino("usr/lib/c"));
    place.assert_safe();
}

#[test]
fn files_keep_what_is_theirs_and_get_no_power_over_the_node() {
    let place = Place::new();
    let layer = Layer::new()
        .extended(&[
            ("SCHILY.xattr.user.note", b"kept"),
            ("SCHILY.xattr.security.capability", b"x"),
            ("mtime", b"7.5"),
        ])
        .entry(EntryType::Regular, "su", "", 0o6777, b"#!")
        .entry(EntryType::Directory, "spool", "", 0o3777, b"")
        .entry(EntryType::Fifo, "fifo", "", 0o644, b"")
        .entry(EntryType::Char, "null", "", 0o666, b"")
        .entry(EntryType::Block, "sda", "", 0o666, b"")
        .file("own/deep/file", "x");
    assert_eq!(place.unpack(vec![layer]).unwrap(), 2, "devices are left out");
    let of = |name: &str| fs::symlink_metadata(place.root().join(name)).unwrap();
    assert_eq!((of("su").mode() & 0o7777, of("su").mtime()), (0o755, 7));
    assert_eq!(of("spool").mode() & 0o7777, 0o1755);
    assert!(of("fifo").file_type().is_fifo());
    assert_eq!(of("own/deep/file").mtime(), 1_000_000_000);
    let mut value = [0; 16];
    let mut xattr = |name: &str| rustix::fs::getxattr(place.root().join("su"), name, &mut value);
    match xattr("user.note") {
        Ok(length) => assert_eq!((length, xattr("security.capability").is_err()), (4, true)),
        // Not every file system has them.
        Err(error) => assert_eq!(error, rustix::io::Errno::OPNOTSUPP),
    }
}

#[test]
fn names_that_lead_out_are_refused() {
    for layer in [
        Layer::new().file("../outside", "bad"),
        Layer::new().file("a/../../outside", "bad"),
        Layer::new().hard_link("a", "../outside"),
        Layer::new().file("a/.wh...", ""),
        Layer::new().file(".wh..", ""),
        Layer::new().file("a/.wh.", ""),
        Layer::new().file("../.wh.outside", ""),
    ] {
        let place = Place::new();
        let error = place.unpack(vec![layer]).unwrap_err().to_string();
        assert!(error.starts_with("layer 1 cannot be unpacked"), "{error}");
        place.assert_safe();
    }
}

#[test]
fn links_that_lead_out_lead_to_the_root_of_the_image() {
    let place = Place::new();
    let outside = place.0.path().join("outside").display().to_string();
    let above = place.0.path().display().to_string();
    let layers = vec![
        Layer::new()
            .symlink("up", "../../../../../..")
            .symlink("host", &above)
            .symlink("file", &outside)
            .file("up/below", "1")
            // Where it leads inside is not there, and is not made.
            .directory(above.trim_start_matches('/')),
        Layer::new()
            .file("host/outside", "bad")
            .file("file", "2")
            .file("/absolute", "1")
            .file("up/.wh.below", ""),
    ];
    place.unpack(layers).unwrap();
    place.assert_safe();
    assert_eq!((place.read("file"), place.read("absolute")), ("2".into(), "1".into()));
    assert_eq!(place.read(outside.trim_start_matches('/')), "bad", "inside the root");
    assert!(!place.root().join("below").exists());
    // One that is there from outside is not followed as the last part either.
    symlink(&outside, place.root().join("planted")).unwrap();
    place.unpack(vec![Layer::new().file("planted", "3").hard_link("again", "planted")]).unwrap();
    place.assert_safe();
    let linked = place.unpack(vec![Layer::new().symlink("l", &outside).hard_link("h", "l").file("h", "4")]);
    linked.unwrap();
    place.assert_safe();
}

/// A file of GNU's format for those with holes, which is all hole.
fn hole(bytes: u64) -> Layer {
    let mut header = Header::new_gnu();
    header.set_path("hole").unwrap();
    header.set_entry_type(EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_size(0);
    let gnu = header.as_gnu_mut().unwrap();
    let octal =
        |field: &mut [u8; 12], number: u64| field[..11].copy_from_slice(format!("{number:011o}").as_bytes());
    octal(&mut gnu.realsize, bytes);
    octal(&mut gnu.sparse[0].offset, bytes);
    octal(&mut gnu.sparse[0].numbytes, 0);
    header.set_cksum();
    let mut layer = Layer::new();
    layer.0.append(&header, &b""[..]).unwrap();
    layer
}

#[test]
fn an_archive_without_end_ends() {
    let place = Place::new();
    // A few bytes that would fill every disk, and some that do not.
    assert_eq!(place.unpack(vec![hole(4096)]).map(|_| place.read("hole").len()).unwrap(), 4096);
    let mut unpacking = Unpacking::into(Tree::open(&place.root()).unwrap());
    unpacking.bytes = BYTES_MAX - 4096;
    unpacking.layer(&hole(4096).archive()).unwrap();
    let error = unpacking.layer(&hole(1).archive()).unwrap_err().to_string();
    assert!(error.contains("more than 32 GiB"), "{error}");
    // A name of 2 MiB, which a reader keeps in memory.
    let long = Layer::new()
        .entry(EntryType::GNULongName, "././@LongLink", "", 0, &vec![b'a'; 2 << 20])
        .file("x", "");
    let error = place.unpack(vec![long]).unwrap_err().to_string();
    assert!(error.contains("a header is too long"), "{error}");
    // Deeper and deeper by links, each of which is a short name.
    let mut deep = Layer::new();
    let way = "d/".repeat(40);
    for step in 0..8 {
        let from = if step == 0 { String::new() } else { format!("s{step}/") };
        deep = deep
            .directory(&format!("{from}{way}"))
            .symlink(&format!("s{}", step + 1), &format!("{from}{}", way.trim_end_matches('/')));
    }
    let error = place.unpack(vec![deep]).unwrap_err().to_string();
    assert!(error.contains("nest too deep"), "{error}");
    let tree = Tree::open(&place.root()).unwrap();
    tree.empty(&[]).unwrap();
    assert_eq!(fs::read_dir(place.root()).unwrap().count(), 0, "what was made can be removed");
    for broken in [Layer::new().hard_link("a", "nothing"), Layer::new().symlink("a", "b").file("a/c", "")] {
        place.unpack(vec![broken]).unwrap_err();
    }
    place.assert_safe();
    assert!(Path::new(&place.root()).is_dir());
}
