//! The rules that the repository gives itself, checked.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use headstart_integration_tests::lab::workspace;
use serde_json::Value;

/// Licences that go with MIT OR Apache-2.0 in a binary that others install.
const LICENCES: [&str; 11] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

fn metadata() -> Value {
    let output = Command::new("cargo")
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// True when one of the alternatives of an SPDX expression without parentheses is allowed.
fn allowed(expression: &str) -> bool {
    let plain = expression.replace(['(', ')'], "").replace('/', " OR ");
    plain.split(" OR ").any(|choice| choice.split(" AND ").all(|licence| LICENCES.contains(&licence.trim())))
}

#[test]
fn every_dependency_has_a_licence_that_users_can_live_with() {
    let metadata = metadata();
    for package in metadata["packages"].as_array().unwrap() {
        let licence = package["license"].as_str().unwrap_or("none");
        assert!(allowed(licence), "{} {}: {licence}", package["name"], package["version"]);
    }
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let members = manifests();
    assert!(members.len() >= 9, "{members:?}");
    for manifest in members {
        let text = fs::read_to_string(&manifest).unwrap();
        assert!(text.contains("[lints]\nworkspace = true"), "{}", manifest.display());
    }
}

fn manifests() -> Vec<PathBuf> {
    let packages = metadata();
    let own = packages["packages"].as_array().unwrap().iter().filter(|package| package["source"].is_null());
    own.map(|package| package["manifest_path"].as_str().unwrap().into()).collect()
}

/// Every Rust file under a folder of the workspace.
fn sources(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![workspace().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The code of a file without its comments, in lower case.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n").to_lowercase()
}

/// Whether a text has a word that begins so, in any case. A key of the configuration, as `docker_socket`, does not count.
fn names(text: &str, beginning: &str) -> bool {
    let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_lowercase);
    words.any(|word| word.starts_with(beginning) && word != format!("{beginning}_socket"))
}

#[test]
fn only_its_own_file_names_a_container_runtime() {
    let start = workspace().join("agent/src/start");
    assert!(names("let d = DockerHost;", "docker") && names("/// Runs runc.", "runc"));
    assert!(!names("agent.docker_socket", "docker") && !names("truncated", "runc"));
    for (word, home) in [("docker", "docker"), ("bollard", "docker"), ("runc", "oci")] {
        for file in sources("agent/src") {
            let at_home = file.starts_with(start.join(home)) || file == start.join(format!("{home}.rs"));
            // The list of drivers names the modules. Tests drive the runtimes.
            let is_list = word == home && file == start.with_extension("rs");
            let is_test =
                file.ends_with("tests.rs") || file.components().any(|part| part.as_os_str() == "tests");
            if !at_home && !is_list && !is_test {
                let text = fs::read_to_string(&file).unwrap();
                assert!(!names(&text, word), "{} names {word}", file.display());
            }
        }
    }
}

/// The code of a file without its comments and its unit tests.
fn code_without_tests(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules at the top of a crate that a piece of its code names, by `crate::X` or `crate::{X, Y::Z}`.
fn crate_modules(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for rest in code.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            modules.insert(word(rest));
            continue;
        };
        let (mut depth, mut begins) = (0, true);
        for (at, c) in list.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => begins = true,
                _ if begins && !c.is_whitespace() => {
                    modules.insert(word(&list[at..]));
                    begins = false;
                }
                _ => {}
            }
        }
    }
    modules
}

#[test]
fn modules_are_found_in_every_form_of_an_import() {
    let code = "use crate::syn;\nuse crate::{start::{self, oci}, serve};\nlet a = crate::fd::register();";
    assert_eq!(crate_modules(code), ["fd", "serve", "start", "syn"].map(str::to_owned).into());
}

#[test]
fn commands_that_ask_a_running_agent_know_only_its_api() {
    let cli = workspace().join("agent/src/cli");
    for command in ["status", "explain", "bench", "operate", "reload"] {
        let own = |file: &PathBuf| {
            file.starts_with(cli.join(command)) || *file == cli.join(format!("{command}.rs"))
        };
        let files: Vec<_> = sources("agent/src/cli").into_iter().filter(own).collect();
        assert!(!files.is_empty(), "{command} has no file");
        for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
            let mut modules = crate_modules(&code_without_tests(file));
            modules.retain(|module| module != "api" && module != "cli");
            assert!(modules.is_empty(), "{} uses {modules:?}", file.display());
        }
    }
}

/// Which module at the top of the agent imports which, with a file that does.
fn agent_modules() -> BTreeMap<String, BTreeMap<String, PathBuf>> {
    let root = workspace().join("agent/src");
    let mut modules: BTreeMap<String, BTreeMap<String, PathBuf>> = BTreeMap::new();
    for file in sources("agent/src") {
        let path = file.strip_prefix(&root).unwrap();
        let is_test = path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests");
        if is_test || path.ends_with("main.rs") || path.ends_with("lib.rs") {
            continue;
        }
        let module = path.components().next().unwrap().as_os_str().to_str().unwrap().trim_end_matches(".rs");
        let imports = modules.entry(module.to_owned()).or_default();
        for import in crate_modules(&code_without_tests(&file)) {
            if import != module {
                imports.entry(import).or_insert_with(|| path.to_owned());
            }
        }
    }
    modules
}

#[test]
fn modules_of_the_agent_do_not_import_each_other_in_a_circle() {
    let mut modules = agent_modules();
    assert!(modules.len() > 10, "{modules:?}");
    // Those that import none of the rest are taken away until nothing changes: what is left are circles and what
    // leads to them.
    loop {
        let bottom: Vec<_> = modules
            .iter()
            .filter(|(_, imports)| imports.is_empty())
            .map(|(module, _)| module.clone())
            .collect();
        if bottom.is_empty() {
            break;
        }
        for module in bottom {
            modules.remove(&module);
            modules.values_mut().for_each(|imports| drop(imports.remove(&module)));
        }
    }
    assert!(modules.is_empty(), "modules in a circle, or above one: {modules:#?}");
}

#[test]
fn the_decision_is_pure() {
    let root = workspace().join("agent/src/decision.rs");
    for file in sources("agent/src/decision").into_iter().chain([root]) {
        let code = code(&file);
        for word in [
            "tokio",
            "aya",
            "bollard",
            "metrics",
            "std::fs",
            "std::net",
            "systemtime",
            "instant::now",
            "rand::",
        ] {
            assert!(!code.contains(word), "{} uses {word}", file.display());
        }
    }
}

#[test]
fn unsafe_code_is_where_the_architecture_says() {
    let homes = [
        "injector/wire/src/activity.rs",
        "injector/wire/src/channel.rs",
        "injector/wire/src/heap.rs",
        "injector/wire/src/idmap.rs",
        "injector/wire/src/ktls.rs",
        "injector/wire/src/memory.rs",
        "injector/wire/src/queue.rs",
        "injector/wire/src/rights.rs",
        "ebpf/src",
        "runtime-shim/src/control/inherited.rs",
        "runtime-shim/init/src/filter.rs",
        "runtime-shim/init/src/notify.rs",
        "runtime-shim/init/src/program.rs",
    ];
    for folder in ["agent", "config", "ebpf", "examples", "injector", "runtime-shim"] {
        for file in sources(folder) {
            let at_home = homes.iter().any(|home| file.starts_with(workspace().join(home)));
            assert!(at_home || !code(&file).contains("unsafe {"), "{}", file.display());
        }
    }
}

#[test]
fn every_source_file_says_what_it_is_for() {
    for folder in ["agent", "config", "ebpf", "examples", "injector", "integration-tests", "runtime-shim"] {
        for file in sources(folder) {
            let text = fs::read_to_string(&file).unwrap();
            let documented = text.starts_with("//!") || file.to_string_lossy().ends_with("tests.rs");
            assert!(documented, "{} does not begin with //!", file.display());
        }
    }
}

#[test]
fn examples_stay_small() {
    for example in ["echo", "orders"] {
        let text = fs::read_to_string(workspace().join(format!("examples/{example}/src/main.rs"))).unwrap();
        assert!(text.lines().count() < 80, "{example} is to be copied by users");
    }
}

#[test]
fn the_configuration_in_the_readme_is_a_good_one() {
    let readme = fs::read_to_string(workspace().join("README.md")).unwrap();
    let (_, after) = readme.split_once("```toml\n").unwrap();
    let (text, _) = after.split_once("```").unwrap();
    let config =
        headstart_config::Config::parse("README.md", text).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!((config.functions.len(), config.backends.len()), (1, 1));
}

#[test]
fn every_promise_is_held_by_a_file_that_exists() {
    let text = fs::read_to_string(workspace().join("SPECIFICATION.md")).unwrap();
    let links: Vec<_> = text.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(links.len() > 10, "{links:?}");
    for link in links {
        assert!(workspace().join(link).is_file(), "SPECIFICATION.md names {link}");
    }
}

#[test]
fn metrics_are_recorded_in_one_place() {
    for file in sources("agent/src") {
        let path = file.to_string_lossy();
        if !path.contains("/measure/") && !path.contains("tests") {
            assert!(!code_has_metric(&file), "{} names a metric of its own", file.display());
        }
    }
}

/// Whether a file calls the metrics crate by itself.
fn code_has_metric(file: &Path) -> bool {
    ["counter!(", "gauge!(", "histogram!("].iter().any(|call| code(file).contains(call))
}

#[test]
fn the_laboratory_knows_nothing_of_what_is_measured_in_it() {
    for file in sources("integration-tests/src/lab") {
        assert!(!code(&file).contains("crate::evidence"), "{} imports `evidence`", file.display());
    }
}
