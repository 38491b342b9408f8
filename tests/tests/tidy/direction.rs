//! Which crate may depend on which, and that every dependency is told of.
//!
//! ```text
//!   arbiter ◀── checkpoint ◀─┬─ vmm ◀───────┬─ tools ◀─┬─ tests
//!      ▲                     ├─ transport ◀─┤          └─ benches
//!      └───────────────────────── etcd ◀────┘
//!   probe (what guest and clients agree on) ◀── guest, tools, tests, benches
//! ```

use crate::checkout::{Crate, Text};

/// Others' crates by the beginnings of their names.
const ASYNC: &[&str] = &["async", "futures", "tokio"];
const NETWORK: &[&str] = &["axum", "etcd", "hyper", "quinn", "reqwest", "rustls", "socket2"];
const VIRTUALISATION: &[&str] =
    &["event-manager", "kvm-", "linux-loader", "userfaultfd", "virtio-", "vm-", "vmm-sys-util"];
const SYSTEM: &[&str] = &["libc", "nix", "rustix"];
const PROBE: &str = "romulus-probe";

/// What a crate may depend on.
struct Rule {
    package: &'static str,
    /// Those of our crates that it may know.
    ours: &'static [&'static str],
    /// Others' crates that it may not know.
    barred: &'static [&'static [&'static str]],
}

const CORE: &[&[&str]] = &[ASYNC, NETWORK, VIRTUALISATION, SYSTEM];
const BELOW_TOOLS: &[&str] = &["romulus-arbiter", "romulus-checkpoint"];
const ALL_BELOW: &[&str] = &[
    "romulus",
    "romulus-arbiter",
    "romulus-checkpoint",
    "romulus-etcd",
    "romulus-transport",
    "romulus-vmm",
    PROBE,
];

const RULES: [Rule; 11] = [
    Rule { package: PROBE, ours: &[], barred: CORE },
    Rule { package: "probe-guest", ours: &[PROBE], barred: CORE },
    Rule { package: "romulus-arbiter", ours: &[], barred: CORE },
    Rule { package: "romulus-checkpoint", ours: &["romulus-arbiter"], barred: CORE },
    Rule { package: "romulus-etcd", ours: &["romulus-arbiter"], barred: &[VIRTUALISATION] },
    Rule { package: "romulus-transport", ours: BELOW_TOOLS, barred: &[VIRTUALISATION] },
    Rule { package: "romulus-vmm", ours: BELOW_TOOLS, barred: &[ASYNC, NETWORK] },
    Rule { package: "romulus", ours: ALL_BELOW, barred: &[] },
    Rule { package: "romulus-tests", ours: ALL_BELOW, barred: &[] },
    Rule { package: "romulus-fuzz", ours: &["romulus-tests"], barred: CORE },
    Rule { package: "romulus-benches", ours: ALL_BELOW, barred: &[] },
];

/// What is wrong with the dependencies of `krate`, those of its tests and its
/// build script included.
pub(crate) fn check(krate: &Crate) -> Vec<String> {
    let package = krate.manifest["package"]["name"].as_str().expect("a package has a name");
    let Some(rule) = RULES.iter().find(|rule| rule.package == package) else {
        return vec![format!(
            "{package}: is in no rule: give it its place in tests/tests/tidy/direction.rs and ARCHITECTURE.md"
        )];
    };
    dependencies(krate).iter().filter_map(|name| objection(rule, name)).collect()
}

fn objection(rule: &Rule, dependency: &str) -> Option<String> {
    let package = rule.package;
    let is_ours = RULES.iter().any(|other| other.package == dependency);
    if is_ours && dependency != package && !rule.ours.contains(&dependency) {
        return Some(format!(
            "{package}: may not know {dependency}: move what both need down, or the user of both up"
        ));
    }
    let barred =
        rule.barred.iter().any(|names| names.iter().any(|name| dependency.starts_with(name)));
    barred.then(|| {
        format!("{package}: may not know {dependency}: that is the business of a crate above")
    })
}

/// Others' crates that `krate` depends on and that `architecture`, the text of
/// `ARCHITECTURE.md`, has no row for.
pub(crate) fn check_told(krate: &Crate, architecture: &Text) -> Vec<String> {
    let path = &architecture.path;
    let told: Vec<&str> = told(&architecture.text).collect();
    let is_ours = |name: &str| RULES.iter().any(|rule| rule.package == name);
    let mut untold = dependencies(krate);
    untold.retain(|name| !is_ours(name) && !told.contains(&name.as_str()));
    untold.sort();
    untold.dedup();
    let package = krate.manifest["package"]["name"].as_str().expect("a package has a name");
    let complaint = |name: String| {
        format!(
            "{package}: {path} does not tell what {name} is for: add it to the table of dependencies"
        )
    };
    untold.into_iter().map(complaint).collect()
}

/// What stands in code marks in the first column of the table of dependencies.
fn told(architecture: &str) -> impl Iterator<Item = &str> {
    let sections = architecture.split("\n## ");
    let section = sections.skip(1).find(|section| section.starts_with("Dependencies\n"));
    let rows = section.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `"));
    rows.flat_map(|row| row.split('|').next().unwrap_or_default().split('`').step_by(2))
}

/// The packages that a manifest names, whatever it calls them.
fn dependencies(krate: &Crate) -> Vec<String> {
    let mut names = Vec::new();
    let platforms = krate.manifest.get("target").and_then(toml::Value::as_table);
    let tables = platforms.into_iter().flat_map(toml::Table::values);
    for table in tables.filter_map(toml::Value::as_table).chain([&krate.manifest]) {
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(section) = table.get(section).and_then(toml::Value::as_table) else {
                continue;
            };
            names.extend(section.iter().map(|(name, wanted)| {
                let package = wanted.get("package").and_then(toml::Value::as_str);
                package.unwrap_or(name).to_owned()
            }));
        }
    }
    names
}

#[test]
fn a_wrong_direction_is_found() {
    let krate = |text: &str| Crate { folder: "x".into(), manifest: text.parse().unwrap() };
    let upwards = krate(
        "[package]\nname = \"romulus-checkpoint\"\n[dependencies]\narbiter = { package = \"romulus-arbiter\" }\n\
         [dev-dependencies]\nt = { package = \"romulus-transport\" }\n[target.x.dependencies]\ntokio = \"1\"\n",
    );
    let told = check(&upwards);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told.iter().any(|complaint| complaint.contains("may not know romulus-transport")));
    assert!(told.iter().any(|complaint| complaint.contains("may not know tokio")));
    assert_eq!(check(&krate("[package]\nname = \"new\"\n")).len(), 1);
}

#[test]
fn a_dependency_that_nobody_tells_of_is_found() {
    let text = "# A\n\n| `late` | elsewhere |\n\n## Dependencies\n\n| crate | for |\n|---|---|\n\
                | `one`, `two` (tests) | `three` |\n\n## End\n\n| `four` | |\n";
    let architecture = Text { path: "ARCHITECTURE.md".into(), text: text.into() };
    let krate = |text: &str| Crate { folder: "x".into(), manifest: text.parse().unwrap() };
    let told = krate(
        "[package]\nname = \"x\"\n[dependencies]\none = \"1\"\nromulus-arbiter = \"1\"\n\
         [dev-dependencies]\nother = { package = \"two\" }\n",
    );
    assert_eq!(check_told(&told, &architecture), Vec::<String>::new());
    let untold = krate(
        "[package]\nname = \"x\"\n[dependencies]\nlate = \"1\"\nthree = \"1\"\n\
         [dev-dependencies]\nthree = \"1\"\n[build-dependencies]\nfour = \"1\"\n",
    );
    let complaints = check_told(&untold, &architecture);
    assert_eq!(complaints.len(), 3, "{complaints:?}");
    for (complaint, name) in complaints.iter().zip(["four", "late", "three"]) {
        assert!(complaint.contains(&format!("does not tell what {name} is for")), "{complaint}");
    }
}
