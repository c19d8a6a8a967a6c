use super::*;
use crate::lab::Scratch;

#[test]
fn no_samples_and_no_numbers_are_no_figure() {
    assert!(Figure::new("a_ms", &[], "ms", &[]).is_err());
    assert!(Figure::new("a_ms", &[], "ms", &[1.0, f64::NAN]).is_err());
}

#[test]
fn a_report_holds_what_was_added_and_what_others_measured() {
    let files = Scratch::new("report").unwrap();
    let other = files.path().join("xdp_ns.json");
    let mut report = BenchReport::new().unwrap();
    assert!(!report.merge(&other).unwrap());
    fs::write(&other, r#"{"figures":[{"name":"xdp_ns","labels":{"case":"udp"},"unit":"ns","n":7,"p50":3}]}"#)
        .unwrap();
    assert!(report.merge(&other).unwrap());
    for flood in ["off", "on"] {
        report.add(&Figure::new("cold_ms", &[("flood", flood)], "ms", &[1.0, 2.25]).unwrap());
    }
    report.write(files.path()).unwrap();

    let read = |name: &str| fs::read_to_string(files.path().join(name)).unwrap();
    let json: Value = serde_json::from_str(&read("report.json")).unwrap();
    let names: Vec<_> = json["figures"].as_array().unwrap().iter().map(|figure| &figure["name"]).collect();
    assert_eq!(names, ["xdp_ns", "cold_ms", "cold_ms"]);
    assert_eq!(json["figures"][2]["labels"]["flood"], "on");
    assert_eq!(json["figures"][2]["p50"], 1.0);
    assert_eq!(json["figures"][2]["n"], 2);
    assert!(json["machine"]["cpus"].as_u64().unwrap() >= 1);
    let text = read("report.md");
    for line in ["## xdp_ns (ns)", "| case=udp | 7 | 3 | - | - | - | - | - | - |", "## cold_ms (ms)"] {
        assert!(text.contains(line), "{text}");
    }
    assert!(
        text.contains("| flood=on | 2 | 1.0 [1.0, 2.25] | 2.25 | 2.25 | 2.25 | 1.0 | 2.25 | 1.625 |"),
        "{text}"
    );
    fs::write(&other, "{}").unwrap();
    assert!(report.merge(&other).unwrap_err().to_string().contains("no list of figures"));
}

#[test]
fn a_figure_says_how_sure_it_is_of_its_median_and_how_far_samples_are_apart() {
    let value = Figure::new("a_ms", &[], "ms", &[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap().value();
    // The squares of the distances from the mean, 5, are 32 together.
    assert_eq!(value["variance"], 4.571_429);
    assert_eq!((&value["p50"], &value["p95"]), (&json!(4.0), &json!(9.0)));
    let [low, high] = ["p50_low", "p50_high"].map(|key| value[key].as_f64().unwrap());
    assert!((2.0..=4.0).contains(&low) && (5.0..=9.0).contains(&high), "{value}");
    assert!(Figure::new("a_ms", &[], "ms", &[3.0]).unwrap().value()["variance"].is_null());
}

#[test]
fn a_percentile_needs_samples_beyond_it() {
    assert_eq!([50.0, 90.0, 95.0, 99.0].map(samples_needed), [2, 10, 20, 100]);
    let value = Figure::new("a_ratio", &[], "ratio", &[1.0]).unwrap();
    let value = value.based_on(Some(Basis { samples: 20, needs: 100 })).value();
    assert_eq!(value["basis"], json!({ "n": 20, "needs": 100 }));
}

#[test]
fn what_is_partial_says_so_and_notes_and_seeds_of_parts_are_kept() {
    let files = Scratch::new("report").unwrap();
    let mut report = BenchReport::new().unwrap();
    assert!(!report.markdown().unwrap().contains("PARTIAL"));
    for (file, text) in [
        ("a.json", r#"{"figures":[],"seed":7,"notes":{"postgres":"15.1"}}"#),
        ("b.json", r#"{"figures":[],"seed":8,"partial":true}"#),
    ] {
        assert!(!report.is_partial());
        let file = files.path().join(file);
        fs::write(&file, text).unwrap();
        assert!(report.merge(&file).unwrap());
    }
    assert!(report.is_partial());
    report.note("rustc", "1.95");
    let (value, text) = (report.value(), report.markdown().unwrap());
    assert_eq!((&value["seed"], &value["partial"]), (&json!(7), &json!(true)));
    assert_eq!(value["notes"], json!({"postgres": "15.1", "rustc": "1.95", "seed of b.json": "8"}));
    assert_eq!(value["machine"]["clock"], "CLOCK_MONOTONIC");
    for line in ["# PARTIAL", "- postgres: 15.1", "- seed: 7", "- clock: CLOCK_MONOTONIC"] {
        assert!(text.contains(line), "{text}");
    }
    report.set_partial(false);
    report.set_seed(9);
    assert!(report.markdown().unwrap().contains("- seed: 9") && !report.is_partial());
}
