use std::os::unix::fs::PermissionsExt as _;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;

/// A certificate for these names, and its key.
fn made(names: &[&str], until: i32) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    (params.not_before, params.not_after) = (date_time_ymd(until - 10, 1, 1), date_time_ymd(until, 1, 1));
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

fn write(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn refusal(path: &Path) -> String {
    Certificates::read(&[path.to_owned()], false).unwrap_err().to_string()
}

#[test]
fn keys_are_found_in_the_file_beside_it_and_where_certbot_puts_them() {
    let directory = tempfile::tempdir().unwrap();
    let place = |name: &str| {
        let place = directory.path().join(name);
        fs::create_dir(&place).unwrap();
        place
    };
    let (many, certbot) = (place("many"), place("certbot"));
    let (one, key) = made(&["A.example", "*.b.example"], 2090);
    write(&many, "1.pem", &format!("{key}{one}"));
    let (two, key) = made(&["c.example"], 2090);
    write(&many, "2.crt", &two);
    write(&many, "2.key", &key);
    write(&many, "notes.txt", "-----BEGIN CERTIFICATE-----");
    let (three, key) = made(&["d.example", "127.0.0.1"], 2090);
    write(&certbot, "fullchain.pem", &three);
    write(&certbot, "cert.pem", &three);
    write(&certbot, "privkey.pem", &key);
    let all = Certificates::read(&[many, certbot], false).unwrap();
    let names: Vec<_> = all.list().iter().map(|one| one.names.join(" ")).collect();
    assert_eq!(names, ["a.example *.b.example", "c.example", "d.example 127.0.0.1"]);
    for (host, found) in [
        ("a.example", true),
        ("x.b.example", true),
        ("*.b.example", true),
        ("b.example", false),
        ("127.0.0.1", true),
        ("*.c.example", false),
    ] {
        assert_eq!(all.cover(host), found, "{host}");
        assert_eq!(all.choose(Some(host)).is_some(), found, "{host}");
    }
    assert!(all.choose(None).is_none());
}

#[test]
fn a_certificate_that_is_valid_goes_before_one_that_is_not() {
    let directory = tempfile::tempdir().unwrap();
    for (file, until) in [("1.pem", 2090), ("2.pem", 2020), ("3.pem", 2080)] {
        let (certificate, key) = made(&["a.example"], until);
        write(directory.path(), file, &format!("{certificate}{key}"));
    }
    let all = Certificates::read(&[directory.path().to_owned()], true).unwrap();
    // Of 2080 to 2090 is not valid yet, of 2070 to 2080 neither.
    let now = SystemTime::now();
    let complaints: Vec<_> = all.list().iter().map(|one| one.complaint(now).unwrap_or_default()).collect();
    assert!(complaints[0].contains("not valid yet") && complaints[1].contains("expired"), "{complaints:?}");
    assert!(all.list()[1].is_invalid(now));
    assert_eq!(all.choose(Some("a.example")).unwrap().file.file_name().unwrap(), "1.pem");
    assert!(all.choose(Some("b.example")).is_some(), "the first is for all others");
    let soon = all.list()[0].not_after - EXPIRES_SOON / 2;
    assert!(all.list()[0].complaint(soon).unwrap().contains("expires in 7 days"));
}

#[test]
fn what_cannot_be_used_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path();
    let ((one, key), (_, other)) = (made(&["a"], 2090), made(&["a"], 2090));
    let alone = write(place, "alone.pem", &one);
    assert!(refusal(&alone).contains("has no private key: add it to the file, or write it to"));
    let wrong = write(place, "wrong.pem", &format!("{one}{other}"));
    assert!(refusal(&wrong).contains("cannot be used together"), "{}", refusal(&wrong));
    let empty = write(place, "empty.pem", &key);
    assert!(refusal(&empty).contains("holds no certificate"));
    let open = write(place, "open.pem", &format!("{one}{key}"));
    fs::set_permissions(&open, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refusal(&open).contains("chmod 600"), "{}", refusal(&open));
    assert!(refusal(&place.join("none.pem")).contains("put the certificate there"));
    let bare = place.join("bare");
    fs::create_dir(&bare).unwrap();
    assert!(refusal(&bare).contains("no file in"));
}
