//! A report as one page that needs nothing but itself.
//!
//! The page forbids itself every request (its content security policy), so it
//! can be mailed, archived and opened anywhere.

use std::fmt::Write as _;

use super::{Report, chart::Chart};
use crate::bench::table::{Cell, Column, Table};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The whole page. Charts come first; the table of a chart is below it, and below
/// the last one if it has several.
///
/// # Panics
///
/// If a chart names a table or a column that is not there.
pub(super) fn page(report: &Report) -> String {
    let title = format!("romulus bench {}", escape(&report.name));
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\
         <title>{title}</title>\n<style>{STYLE}</style></head><body><main>\n\
         <header><h1>{title}</h1><p class=\"about\">{}</p></header>\n",
        escape(&report.about)
    );
    for chart in &report.charts {
        assert!(report.table(&chart.table).is_some(), "no table `{}` to draw", chart.table);
    }
    for table in &report.tables {
        html.push_str("<section>\n");
        for chart in report.charts.iter().filter(|chart| chart.table == table.name) {
            html.push_str(&figure(chart, table));
        }
        html.push_str(&rows(table));
        html.push_str("</section>\n");
    }
    html.push_str(&origin(report));
    let _ = write!(html, "<div id=\"tip\" role=\"status\"></div>\n<script>{SCRIPT}</script>");
    html.push_str("</main></body></html>\n");
    html
}

fn figure(chart: &Chart, table: &Table) -> String {
    let (title, drawing) = (escape(&chart.title), chart.html(table));
    format!("<figure><figcaption>{title}</figcaption>{drawing}</figure>\n")
}

fn rows(table: &Table) -> String {
    let mut html = format!(
        "<h2>{}</h2>\n<div class=\"scroll\"><table id=\"{}\"><thead><tr>",
        escape(&table.caption),
        escape(&table.name)
    );
    for (index, Column { name, unit }) in table.columns.iter().enumerate() {
        let class = if table.is_numeric(index) { "number" } else { "text" };
        let unit = if unit.is_empty() {
            String::new()
        } else {
            format!("<span class=\"unit\">{}</span>", escape(unit))
        };
        let _ = write!(html, "<th class=\"{class}\">{}{unit}</th>", escape(name));
    }
    html.push_str("</tr></thead><tbody>\n");
    for row in &table.rows {
        html.push_str("<tr>");
        for cell in row {
            let shown = escape(&cell.shown());
            let _ = match cell {
                Cell::Number(value) => {
                    write!(html, "<td class=\"number\" title=\"{value}\">{shown}</td>")
                }
                Cell::Text(_) => write!(html, "<td>{shown}</td>"),
                Cell::Absent => write!(html, "<td class=\"number absent\">{shown}</td>"),
            };
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody></table></div>\n");
    if !table.note.is_empty() {
        let _ = writeln!(html, "<p class=\"note\">{}</p>", escape(&table.note));
    }
    html
}

/// Where the figures come from, and how to measure them again.
fn origin(report: &Report) -> String {
    let machine = &report.machine;
    let mut pairs = vec![
        ("command".to_owned(), report.command.clone()),
        ("processor".to_owned(), format!("{}, {} cores", machine.cpu, machine.cores)),
        ("memory".to_owned(), format!("{} MiB", machine.memory_mib)),
        ("kernel".to_owned(), format!("Linux {}", machine.kernel)),
        ("KVM".to_owned(), machine.kvm.clone()),
        ("version".to_owned(), machine.version.clone()),
        ("commit".to_owned(), machine.commit.clone().unwrap_or_else(|| "unknown".to_owned())),
    ];
    if !machine.release {
        pairs.push(("build".to_owned(), "WITHOUT optimisations".to_owned()));
    }
    pairs.extend(report.options.iter().map(|(name, value)| (name.clone(), value.clone())));
    let mut html = String::from("<section><h2>Measured by and on</h2><dl>\n");
    for (name, value) in pairs {
        let _ = writeln!(html, "<dt>{}</dt><dd>{}</dd>", escape(&name), escape(&value));
    }
    let ended = report.unix_ms;
    let _ = writeln!(
        html,
        "<dt>ended</dt><dd><time data-unix-ms=\"{ended}\">{ended} ms since 1970</time></dd></dl></section>"
    );
    html
}

/// Text that may stand between tags and within quotes.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Attributes keep line breaks only like this.
            '\n' => escaped.push_str("&#10;"),
            other => escaped.push(other),
        }
    }
    escaped
}
