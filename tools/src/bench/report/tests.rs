//! The files hold what was measured, and nothing from elsewhere.

use super::*;
use crate::bench::statistics::Spread;

fn report() -> Report {
    let pauses = Table::new("pauses", "Pause by dirty pages & way <of copying>.")
        .column("way", "")
        .column("dirty", "pages");
    let mut pauses = Spread::columns(pauses, "pause", "ms").note("Medians of 3 runs.");
    for (way, factor) in [("romulus", 1.0), ("stop-copy-send", 9.37)] {
        for dirty in [100_u32, 1000, 10_000] {
            let pause = f64::from(dirty) / 7193.0 * factor;
            let [median, low, high] = [pause, pause * 0.9, pause * 1.21].map(Into::into);
            pauses.push(vec![way.into(), dirty.into(), median, low, high]);
        }
    }
    let mut phases = Table::new("phases", "What the pause is made of.")
        .column("interval", "ms")
        .column("harvest", "ms")
        .column("capture", "ms");
    phases.push(vec![10_u32.into(), 0.123_456.into(), 0.4.into()]);
    phases.push(vec![20_u32.into(), 0.2.into(), f64::NAN.into()]);
    let mut report = Report::new("pause", "How long the guest stands still.").option("epoch", 25);
    report.tables = vec![pauses, phases];
    let [low, high] = Spread::names("pause");
    report.charts = vec![
        Chart::new(ChartKind::Lines, "Pause by dirty pages", "pauses", "dirty")
            .y_within("pause", &low, &high)
            .by("way")
            .log(true, true),
        Chart::new(ChartKind::Stacks, "Phases", "phases", "interval").y("harvest").y("capture"),
        Chart::new(ChartKind::Bars, "Phases, beside", "phases", "interval")
            .y("harvest")
            .y("capture"),
    ];
    report
}

fn numbers(report: &Report) -> impl Iterator<Item = f64> {
    report.tables.iter().flat_map(|table| table.rows.iter().flatten()).filter_map(|it| it.number())
}

#[test]
fn the_page_holds_every_number_and_refers_to_nothing() {
    let report = report();
    let page = html::page(&report);
    for number in numbers(&report) {
        let cell = format!("title=\"{number}\">{}</td>", crate::bench::table::shown(number));
        assert!(page.contains(&cell), "{cell} is not in the page");
    }
    for reference in ["http:", "https:", "//", "src=", "href=", "url(", "@import", "<link"] {
        let without_comments = page.replace("\n// What a mark says", "");
        assert!(!without_comments.contains(reference), "the page has `{reference}`");
    }
    assert!(page.contains("&amp; way &lt;of copying&gt;"), "text is escaped");
    assert!(!page.contains("NaN"), "a figure that is none was drawn");
}

#[test]
fn every_figure_of_a_chart_has_a_mark_that_says_it() {
    let page = html::page(&report());
    let marks = page.matches("data-tip=").count();
    assert_eq!(marks, 6 + 3 + 3, "six points, and twice three bars");
    assert!(
        page.contains("romulus&#10;dirty 1,000 pages: 0.139 ms&#10;0.125 to 0.168 ms in all runs")
    );
}

#[test]
#[should_panic(expected = "wants the column `pauses`")]
fn a_chart_of_nothing_is_a_bug() {
    let mut report = report();
    report.charts[0].y[0].column = "pauses".to_owned();
    html::page(&report);
}

#[test]
fn all_files_are_written() {
    let report = report();
    let folder = tempfile::tempdir().unwrap();
    let files = report.write(&folder.path().join("new")).unwrap();
    let names: Vec<_> =
        files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["pause.html", "pause.json", "pause-pauses.csv", "pause-phases.csv"]);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(&files[1]).unwrap()).unwrap();
    assert_eq!(json["tables"][0]["rows"][1][1], 1000.0);
    assert_eq!(json["tables"][1]["rows"][1][2], serde_json::Value::Null);
    assert_eq!(json["options"]["epoch"], "25");
    let csv = fs::read_to_string(&files[3]).unwrap();
    assert_eq!(csv, "interval [ms],harvest [ms],capture [ms]\r\n10,0.123456,0.4\r\n20,0.2,\r\n");
}

#[test]
fn a_folder_that_cannot_be_is_refused_with_its_name() {
    let refused = report().write(Path::new("/proc/romulus")).unwrap_err().to_string();
    assert!(refused.contains("/proc/romulus") && refused.contains("--out"), "{refused}");
}
