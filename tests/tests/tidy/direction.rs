//! Which crate may depend on which.
//!
//! ```text
//!   arbiter ◀── checkpoint ◀─┬─ vmm ◀───────┬─ tools ◀─┬─ tests
//!      ▲                     ├─ transport ◀─┤          └─ benches
//!      └───────────────────────── etcd ◀────┘
//!   probe (what guest and clients agree on) ◀── guest, tools, tests, benches
//! ```

use crate::checkout::Crate;

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
