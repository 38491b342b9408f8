//! `romulus bench wire` and `romulus bench peer`: that they measure everything they say,
//! never what.

#![forbid(unsafe_code)]

mod machine;

use std::process::Command;

use machine::{GUESTS, machine_for};
use serde_json::Value;

/// The report of a short run.
fn report(benchmark: &str) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_romulus"))
        .args(["bench", benchmark, "--quick", "--json", "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{words}", String::from_utf8_lossy(&output.stdout));
    assert!(folder.path().join(format!("{benchmark}.html")).exists());
    serde_json::from_slice(&output.stdout).expect(&words)
}

/// The table of that name, each row by its headings.
fn rows(report: &Value, name: &str) -> Vec<serde_json::Map<String, Value>> {
    let tables = report["tables"].as_array().unwrap();
    let table = tables.iter().find(|table| table["name"] == name).expect("a table");
    let columns: Vec<_> = table["columns"].as_array().unwrap().iter().collect();
    let named = |row: &Value| {
        let cells = columns.iter().zip(row.as_array().unwrap());
        cells
            .map(|(column, cell)| (column["name"].as_str().unwrap().into(), cell.clone()))
            .collect()
    };
    table["rows"].as_array().unwrap().iter().map(named).collect()
}

#[test]
fn every_stage_of_the_wire_moves_something() {
    let report = report("wire");
    let stages = rows(&report, "stages");
    for stage in ["baseline", "encode", "hash", "encrypt", "ship", "decode", "apply", "together"] {
        assert!(stages.iter().any(|row| row["stage"] == stage), "no {stage}: {report:#}");
    }
    for row in &stages {
        for rate in ["rate", "rate per CPU"] {
            assert!(row[rate].as_f64().is_some_and(|rate| rate > 0.0), "{row:?}");
        }
    }
    let ratios = rows(&report, "ratios");
    assert!(ratios.iter().any(|row| row["what"] == "QUIC, default options"), "{report:#}");
}

#[test]
fn the_same_guest_stands_still_under_each_of_them() {
    let Some(_machine) = machine_for("the_same_guest_stands_still_under_each_of_them", GUESTS)
    else {
        return;
    };
    let report = report("peer");
    let pauses = rows(&report, "pauses");
    assert_eq!(pauses.len(), 3, "{report:#}");
    for row in &pauses {
        // A QEMU that is missing, or of a version without COLO, is told of in a remark.
        let measured = row["mean"].as_f64().is_some_and(|mean| mean > 0.0);
        let told = row["remark"].as_str().is_some_and(|remark| !remark.is_empty());
        assert!(measured || (told && row["who"] != "Romulus"), "{report:#}");
    }
}
