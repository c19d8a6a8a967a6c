use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const KEY: &str = "000102030405060708090a0b0c0d0e0f";
const OTHER: &str = "FFEEDDCCBBAA99887766554433221100";
/// The words of `KEY`, as the paper on SipHash has them in its appendix A.
const WORDS: [u64; 2] = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

fn write(dir: &TempDir, text: impl AsRef<[u8]>, mode: u32) -> PathBuf {
    let path = dir.path().join("keys");
    // Only root writes to a file that is read-only.
    let _ = fs::remove_file(&path);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path
}

/// The message of the error, in which `F` stands for the file.
fn message(path: &Path) -> String {
    Keys::load(path).unwrap_err().to_string().replace(&path.display().to_string(), "F")
}

#[test]
fn keys_are_read_by_number() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("# clients\n\n 15\t{OTHER} # since March\r\n2 {KEY}");
    let keys = Keys::load(write(&dir, text, 0o600)).unwrap();
    let other = [0x8899_aabb_ccdd_eeff, 0x0011_2233_4455_6677];
    assert_eq!(keys.iter().collect::<Vec<_>>(), [(2, WORDS), (15, other)]);
    assert_eq!((keys.get(2), keys.get(1)), (Some(WORDS), None));
    assert_eq!(keys.newest(), Some((15, other)));
    assert!(!keys.is_empty());
    assert_eq!(format!("{keys:?}"), "{2, 15}");
}

#[test]
fn a_file_without_keys_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    for text in ["", "\n", "# 1 00", " \t\r\n#"] {
        let keys = Keys::load(write(&dir, text, 0o400)).unwrap();
        assert!(keys.is_empty() && keys.newest().is_none(), "{text:?}");
    }
}

#[test]
fn wrong_lines_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let digits = "the key must be 32 hexadecimal digits: it may have been cut off";
    let number = "the number before the key must be 1 to 15";
    let form = "must be a number and a key, as `NUMBER HEX`";
    let cases = [
        (format!("2 {}", &KEY[..31]), digits),
        (format!("2 {KEY}0"), digits),
        (format!("2 +{}", &KEY[1..]), digits),
        (format!("2 {}g", &KEY[1..]), digits),
        (format!("2 é{}", &KEY[2..]), digits),
        (format!("0 {KEY}"), number),
        (format!("16 {KEY}"), number),
        (format!("272 {KEY}"), number),
        (format!("+2 {KEY}"), number),
        (format!("{KEY} 2"), number),
        (KEY.to_owned(), form),
        ("2".to_owned(), form),
        (format!("2 {KEY} 3"), form),
        (format!("2 {}", "0".repeat(32)), "the key is all zero, which anybody guesses: make a random one"),
        (format!("1 {KEY}"), "the number is that of the key on line 2: take a free one for a new key"),
        (
            format!("2 {}", OTHER.to_lowercase()),
            "the key is the one on line 2: make a new random one, or remove a line",
        ),
    ];
    for (line, expected) in cases {
        let path = write(&dir, format!("# first\n1 {OTHER}\n{line}\n3 {KEY}\n"), 0o600);
        assert_eq!(message(&path), format!("F:3: {expected}"), "{line}");
    }
}

#[test]
fn a_file_that_was_cut_off_is_an_error_or_has_fewer_keys() {
    let text = format!("1 {OTHER}\n2 {KEY}\n");
    for end in 0..text.len() {
        match Keys::parse(&text.as_bytes()[..end]) {
            Ok(keys) => assert!(keys.iter().all(|(number, key)| number == 1 || key == WORDS), "{end}"),
            Err((line, _)) => assert_eq!(line, if end <= 35 { 1 } else { 2 }),
        }
    }
}

#[test]
fn the_file_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    for mode in [0o604, 0o602, 0o601, 0o640, 0o620, 0o610, 0o666, 0o700 | 0o2010] {
        let path = write(&dir, format!("1 {KEY}"), mode);
        assert_eq!(
            message(&path),
            format!(
                "F is open to others than its owner (mode {mode:03o}): `chmod 600 F`, and replace what it \
                 holds if others may have read it"
            )
        );
    }
    for mode in [0o400, 0o600, 0o700] {
        Keys::load(write(&dir, format!("1 {KEY}"), mode)).unwrap();
    }
}

#[test]
fn the_file_belongs_to_root_or_to_its_reader() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, format!("1 {KEY}"), 0o600);
    // The user who runs the test owns the file.
    Keys::load(&path).unwrap();
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !root {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI runs this as root");
        eprintln!("skipped in part: only root can give a file away");
        return;
    }
    chown(&path, Some(12_345), None).unwrap();
    assert_eq!(
        message(&path),
        "F belongs to user 12345, who could change it: `chown` it to root or to the user that runs this \
         program"
    );
}

#[test]
fn only_regular_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    assert_eq!(
        message(&missing),
        "F: No such file or directory (os error 2): create it with a line `NUMBER HEX` per key, and `chmod 600 F`"
    );
    // Opening a FIFO waits for a writer, unless it is told not to.
    let fifo = dir.path().join("fifo");
    assert!(Command::new("mkfifo").arg("-m600").arg(&fifo).status().unwrap().success());
    for path in [dir.path(), &fifo, Path::new("/dev/null")] {
        assert_eq!(
            message(path),
            "F is not a regular file: name the file that holds a line `NUMBER HEX` per key"
        );
    }
    // As secrets are mounted in some places: what a link leads to is checked.
    let link = dir.path().join("link");
    symlink(write(&dir, format!("1 {KEY}"), 0o600), &link).unwrap();
    Keys::load(&link).unwrap();
    write(&dir, "", 0o644);
    assert!(message(&link).contains("(mode 644)"));
}

#[test]
fn large_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = |len: usize| format!("1 {KEY}\n#{}", "x".repeat(len - 36));
    let most = usize::try_from(MAX_BYTES).unwrap();
    Keys::load(write(&dir, text(most), 0o600)).unwrap();
    assert_eq!(
        message(&write(&dir, text(most + 1), 0o600)),
        "F is larger than 64 KiB: name the file that holds a line `NUMBER HEX` per key"
    );
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Keys::parse(&bytes);
    }

    /// Eight digits are a quarter of a key: no more than those may show by accident.
    #[test]
    fn no_message_shows_a_part_of_a_key(lines in prop::collection::vec("[0-9]{0,3} ?[0-9a-f]{8,40}( [0-9a-f]{8,32})?", 1..20)) {
        let text = lines.join("\n");
        let shown = match Keys::parse(text.as_bytes()) {
            Ok(keys) => format!("{keys:?}"),
            Err((line, fault)) => {
                let error = KeyError::Line { path: "/keys".into(), line, fault };
                format!("{error} {error:?}")
            }
        };
        for word in text.split_ascii_whitespace() {
            for part in word.as_bytes().windows(8) {
                prop_assert!(!shown.contains(std::str::from_utf8(part).unwrap()), "{shown}");
            }
        }
    }
}
