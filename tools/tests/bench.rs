//! Every benchmark in its shortest form: what it measures is there, and can be.
//! Never how long anything took: that is what the benchmarks are for.

#![forbid(unsafe_code)]

mod machine;

use std::{collections::BTreeSet, fs, process::Command};

use machine::{GUESTS, machine_for};
use serde_json::Value;

/// Runs `bench NAME --quick` and returns its report, having looked at its files.
fn bench(name: &str, arguments: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("reports");
    let output = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["bench", name, "--quick", "--json", "--out"])
        .arg(&out)
        .args(arguments)
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    let said: Value = serde_json::from_slice(&output.stdout).expect(&words);
    assert!(output.status.success(), "{said:#}\n{words}");
    let kept = fs::read(out.join(format!("{name}.json"))).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&kept).unwrap(), said, "said and kept differ");
    let page = fs::read_to_string(out.join(format!("{name}.html"))).unwrap();
    let shown: Vec<f64> = page.split("title=\"").skip(1).filter_map(leading_number).collect();
    for table in said["tables"].as_array().unwrap() {
        let csv = out.join(format!("{name}-{}.csv", table["name"].as_str().unwrap()));
        let lines = fs::read_to_string(&csv).unwrap().lines().count();
        assert_eq!(lines, 1 + table["rows"].as_array().unwrap().len(), "{csv:?}");
        let rows = table["rows"].as_array().unwrap().iter();
        for number in rows.flat_map(|row| row.as_array().unwrap()).filter_map(Value::as_f64) {
            let shown = shown.iter().any(|it| (it - number).abs() <= 1e-12 * number.abs());
            assert!(shown, "{number} is not in the page");
        }
    }
    let marks = page.matches("data-tip=").count();
    assert!(marks > 0, "nothing is drawn");
    assert!(!page.contains("://"), "the page refers to something elsewhere");
    said
}

/// The number that an attribute's value begins `text` with.
fn leading_number(text: &str) -> Option<f64> {
    text.split('"').next()?.parse().ok()
}

/// The column `name` of the table `table`.
fn column(report: &Value, table: &str, name: &str) -> Vec<Value> {
    let tables = report["tables"].as_array().unwrap();
    let table = tables.iter().find(|it| it["name"] == table).unwrap();
    let columns = table["columns"].as_array().unwrap();
    let index = columns.iter().position(|column| column["name"] == name);
    let index = index.unwrap_or_else(|| panic!("no column {name}: {columns:#?}"));
    table["rows"].as_array().unwrap().iter().map(|row| row[index].clone()).collect()
}

fn numbers(report: &Value, table: &str, name: &str) -> Vec<f64> {
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{name}: {value}"));
    column(report, table, name).iter().map(number).collect()
}

fn all_above(values: &[f64], bound: f64) -> bool {
    !values.is_empty() && values.iter().all(|value| *value > bound)
}

#[test]
fn bench_sweep_measures_both_kinds_of_epochs() {
    let Some(_machine) = machine_for("bench_sweep_measures_both_kinds_of_epochs", GUESTS) else {
        return;
    };
    let report = bench("sweep", &["--intervals", "20", "--memory", "128"]);
    let of = |name: &str| numbers(&report, "intervals", name);
    let kinds: Vec<Value> = column(&report, "intervals", "epochs end");
    assert_eq!(kinds, ["fixed", "early"]);
    for name in ["latency mean", "throughput", "pause p50", "epochs", "wire", "link", "backup"] {
        assert!(all_above(&of(name), 0.0), "{name}: {:?}", of(name));
    }
    let (p50, p99, worst) = (of("latency p50"), of("latency p99"), of("latency p99.9"));
    for case in 0..2 {
        assert!(p50[case] <= p99[case] && p99[case] <= worst[case], "{p50:?} {p99:?} {worst:?}");
    }
    assert!(all_above(&of("dirty"), 0.0), "the guest of the default workload writes");
    assert_eq!(of("slowdown").len(), 2);
    assert!(report["machine"]["kernel"].as_str().unwrap().contains('.'));
}

#[test]
fn bench_failover_tells_every_part() {
    let Some(_machine) = machine_for("bench_failover_tells_every_part", GUESTS) else { return };
    let report = bench("failover", &["--memory", "128"]);
    let victims: BTreeSet<String> =
        column(&report, "runs", "victim").iter().map(ToString::to_string).collect();
    assert_eq!(victims.len(), 2, "hosts take turns");
    let total = numbers(&report, "runs", "total");
    let mut sum = vec![0.0; total.len()];
    for name in ["detection", "arbiter", "apply", "state", "resume", "first answer"] {
        for (sum, part) in sum.iter_mut().zip(numbers(&report, "runs", name)) {
            // Held output goes out before the guest runs, and may bring an answer.
            assert!(part >= 0.0 || name == "first answer", "{name}: {part} ms");
            *sum += part;
        }
    }
    assert!(sum.iter().zip(&total).all(|(a, b)| (a - b).abs() < 1e-6), "{sum:?} {total:?}");
    let parts = column(&report, "parts", "part");
    assert_eq!(parts.len(), 9, "{parts:?}");
    let over = numbers(&report, "distribution", "to the first answer");
    assert_eq!(over.last(), Some(&100.0), "all of them end");
}

#[test]
fn bench_pause_compares_with_the_naive_way_and_leaves_out_what_does_not_fit() {
    let name = "bench_pause_compares_with_the_naive_way_and_leaves_out_what_does_not_fit";
    let Some(_machine) = machine_for(name, GUESTS) else { return };
    let small = ["--memory", "256", "--dirty", "50,400", "--sizes", "1048576", "--count", "3"];
    let report = bench("pause", &small);
    let ways = column(&report, "by-dirty", "way");
    assert_eq!(ways, ["romulus", "stop-copy-send", "romulus", "stop-copy-send"]);
    for name in ["dirty", "epochs", "pause p50", "pause p99", "stop", "harvest"] {
        let values = numbers(&report, "by-dirty", name);
        assert!(all_above(&values, 0.0), "{name}: {values:?}");
    }
    let dirty = numbers(&report, "by-dirty", "dirty");
    assert!(dirty[0] < dirty[2] && dirty[1] < dirty[3], "more was asked for: {dirty:?}");
    assert_eq!(numbers(&report, "ratios", "p50").len(), 2);
    let sizes = report["tables"].as_array().unwrap().iter().find(|it| it["name"] == "by-size");
    let note = sizes.unwrap()["note"].as_str().unwrap().to_owned();
    assert!(note.contains("1048576 MiB was left out"), "{note}");
}

#[test]
fn bench_refuses_a_folder_that_cannot_be() {
    let Some(_machine) = machine_for("bench_refuses_a_folder_that_cannot_be", GUESTS) else {
        return;
    };
    let output = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["bench", "failover", "--quick", "--runs", "1", "--memory", "128"])
        .args(["--out", "/proc/romulus"])
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("--out"), "{words}");
}
