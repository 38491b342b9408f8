//! Charts: which columns of a table to draw, and the drawing, as SVG within HTML.
//!
//! Colours are classes (`s0`, `s1` …) whose colours the page's style sheet
//! defines, for light and for dark. Every mark says its figures in `data-tip`.

use std::fmt::Write as _;

use serde::Serialize;

use super::{axis::Axis, html::escape};
use crate::bench::table::{Cell, Column, Table, shown};

/// Colours that the style sheet has; more series begin anew.
pub(super) const COLOURS: usize = 6;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 380.0;
/// Around the plot: ticks and titles of the axes.
const LEFT: f64 = 72.0;
const RIGHT: f64 = 36.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 54.0;
/// The part of a category's width that its bars take.
const BARS_WIDTH: f64 = 0.66;

/// How to draw a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// The table's name.
    pub table: String,
    /// The kind of drawing.
    pub kind: ChartKind,
    /// The column along the x axis: numbers with lines, anything with bars.
    pub x: String,
    /// The columns along the y axis, of one unit.
    pub y: Vec<Series>,
    /// A column whose texts tell lines of the same y column apart.
    pub by: Option<String>,
    /// Whether the x axis is logarithmic.
    pub x_log: bool,
    /// Whether the y axis is logarithmic.
    pub y_log: bool,
}

/// The kind of drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChartKind {
    /// Points joined by lines.
    Lines,
    /// Bars beside each other, for every row.
    Bars,
    /// Bars on top of each other, for every row.
    Stacks,
}

/// One column to draw, and how far its figure was off in repeated runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Series {
    /// The column.
    pub column: String,
    /// The columns with the lowest and highest figure.
    pub spread: Option<(String, String)>,
}

impl Chart {
    /// With linear axes, and nothing on the y axis.
    #[must_use]
    pub fn new(kind: ChartKind, title: &str, table: &str, x: &str) -> Self {
        Self {
            title: title.to_owned(),
            table: table.to_owned(),
            kind,
            x: x.to_owned(),
            y: Vec::new(),
            by: None,
            x_log: false,
            y_log: false,
        }
    }

    /// Draws a column.
    #[must_use]
    pub fn y(mut self, column: &str) -> Self {
        self.y.push(Series { column: column.to_owned(), spread: None });
        self
    }

    /// Draws a column and the range between two others.
    #[must_use]
    pub fn y_within(mut self, column: &str, low: &str, high: &str) -> Self {
        let spread = Some((low.to_owned(), high.to_owned()));
        self.y.push(Series { column: column.to_owned(), spread });
        self
    }

    /// Draws one line for every text in `column`.
    #[must_use]
    pub fn by(mut self, column: &str) -> Self {
        self.by = Some(column.to_owned());
        self
    }

    /// Makes axes logarithmic.
    #[must_use]
    pub fn log(mut self, x: bool, y: bool) -> Self {
        (self.x_log, self.y_log) = (x, y);
        self
    }

    /// Legend and drawing of `table`'s columns, as HTML.
    ///
    /// # Panics
    ///
    /// If the table lacks a column.
    pub(super) fn html(&self, table: &Table) -> String {
        let lines = self.lines(table);
        let mut html = String::from("<div class=\"legend\">");
        for (index, line) in lines.iter().enumerate() {
            let (colour, name) = (index % COLOURS, escape(&line.name));
            let _ = write!(html, "<span><i class=\"s{colour}\"></i>{name}</span>");
        }
        let drawing = match self.kind {
            ChartKind::Lines => Drawing::of_lines(self, table, &lines).draw_lines(&lines),
            ChartKind::Bars | ChartKind::Stacks => {
                Drawing::of_bars(self, table, &lines).draw_bars(self, table, &lines)
            }
        };
        let _ = write!(
            html,
            "</div><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">{drawing}</svg>",
            escape(&self.title)
        );
        html
    }

    fn column<'t>(&self, table: &'t Table, name: &str) -> (usize, &'t Column) {
        let Some(index) = table.index(name) else {
            panic!("chart `{}` wants the column `{name}` of `{}`", self.title, table.name)
        };
        (index, &table.columns[index])
    }

    fn lines(&self, table: &Table) -> Vec<Line> {
        let x = self.column(table, &self.x).0;
        let by = self.by.as_ref().map(|by| self.column(table, by).0);
        let mut groups: Vec<Option<String>> = Vec::new();
        for row in &table.rows {
            let group = by.map(|by| row[by].shown());
            if !groups.contains(&group) {
                groups.push(group);
            }
        }
        let mut lines = Vec::new();
        for series in &self.y {
            let (y, column) = self.column(table, &series.column);
            let spread = series.spread.as_ref();
            let spread =
                spread.map(|(low, high)| (self.column(table, low).0, self.column(table, high).0));
            for group in &groups {
                let rows = table.rows.iter().enumerate();
                let rows = rows.filter(|(_, row)| by.map(|by| row[by].shown()) == *group);
                let points = rows.filter_map(|(index, row)| {
                    let range = spread
                        .and_then(|(low, high)| Some((row[low].number()?, row[high].number()?)));
                    Some(Point { row: index, x: row[x].clone(), y: row[y].number()?, range })
                });
                let name = match (group, self.y.len()) {
                    (None, _) => series.column.clone(),
                    (Some(group), 1) => group.clone(),
                    (Some(group), _) => format!("{group}: {}", series.column),
                };
                lines.push(Line { name, unit: column.unit.clone(), points: points.collect() });
            }
        }
        lines
    }
}

/// A row's figure.
#[derive(Debug)]
struct Point {
    row: usize,
    x: Cell,
    y: f64,
    range: Option<(f64, f64)>,
}

/// What has one colour.
#[derive(Debug)]
struct Line {
    name: String,
    unit: String,
    points: Vec<Point>,
}

impl Line {
    /// What a mark says: `at` is where it stands.
    fn tip(&self, at: &str, point: &Point) -> String {
        let Self { name, unit, .. } = self;
        let range = point
            .range
            .map(|(low, high)| format!("\n{} to {} {unit} in all runs", shown(low), shown(high)));
        escape(&format!("{name}\n{at}: {} {unit}{}", shown(point.y), range.unwrap_or_default()))
    }
}

/// A drawing under way, with its axes.
struct Drawing {
    svg: String,
    x: Option<Axis>,
    y: Axis,
    x_column: Column,
}

impl Drawing {
    fn of_lines(chart: &Chart, table: &Table, lines: &[Line]) -> Self {
        let points = || lines.iter().flat_map(|line| &line.points);
        let x = Axis::around(points().filter_map(|point| point.x.number()), chart.x_log);
        let ends = points().flat_map(|point| {
            let (low, high) = point.range.unwrap_or((point.y, point.y));
            [low, point.y, high]
        });
        Self::with(chart, table, lines, Some(x), Axis::around(ends, chart.y_log))
    }

    fn of_bars(chart: &Chart, table: &Table, lines: &[Line]) -> Self {
        let tops: Vec<f64> = match chart.kind {
            ChartKind::Stacks => (0..table.rows.len()).map(|row| stack(lines, row)).collect(),
            ChartKind::Bars | ChartKind::Lines => lines
                .iter()
                .flat_map(|line| &line.points)
                .map(|point| point.range.map_or(point.y, |(_, high)| high.max(point.y)))
                .collect(),
        };
        // The length of a bar means something only from 0 on.
        Self::with(chart, table, lines, None, Axis::around(tops, false))
    }

    fn with(chart: &Chart, table: &Table, lines: &[Line], x: Option<Axis>, y: Axis) -> Self {
        let x_column = chart.column(table, &chart.x).1.clone();
        let mut drawing = Self { svg: String::new(), x, y, x_column };
        drawing.draw_axes(chart, lines);
        drawing
    }

    fn draw_axes(&mut self, chart: &Chart, lines: &[Line]) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for tick in self.y.ticks() {
            let y = self.y_of(tick).unwrap_or(bottom);
            let _ = write!(
                self.svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/>\
                 <text class=\"tick\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                y + 4.0,
                tick_text(tick)
            );
        }
        for tick in self.x.as_ref().map(Axis::ticks).unwrap_or_default() {
            let x = self.x_of(tick).unwrap_or(LEFT);
            let _ = write!(
                self.svg,
                "<path class=\"grid\" d=\"M{x:.1} {TOP}V{bottom}\"/>\
                 <text class=\"tick\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 18.0,
                tick_text(tick)
            );
        }
        let unit = lines.first().map_or("", |line| &line.unit);
        let y_name = match &chart.y[..] {
            [only] => Column { name: only.column.clone(), unit: unit.to_owned() }.heading(),
            _ => unit.to_owned(),
        };
        let (x_name, middle) = (escape(&self.x_column.heading()), f64::midpoint(TOP, bottom));
        let _ = write!(
            self.svg,
            "<path class=\"axis\" d=\"M{LEFT} {TOP}V{bottom}H{right}\"/>\
             <text class=\"title\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{x_name}</text>\
             <text class=\"title\" transform=\"translate(16 {middle:.1}) rotate(-90)\" \
             text-anchor=\"middle\">{}</text>",
            f64::midpoint(LEFT, right),
            HEIGHT - 10.0,
            escape(&y_name)
        );
    }

    fn draw_lines(mut self, lines: &[Line]) -> String {
        for (index, line) in lines.iter().enumerate() {
            let colour = index % COLOURS;
            let places: Vec<(f64, f64, &Point)> = line
                .points
                .iter()
                .filter_map(|point| {
                    Some((self.x_of(point.x.number()?)?, self.y_of(point.y)?, point))
                })
                .collect();
            let path: Vec<_> = places.iter().map(|(x, y, _)| format!("{x:.1} {y:.1}")).collect();
            let _ = write!(self.svg, "<g class=\"s{colour}\">");
            if path.len() > 1 {
                let _ = write!(self.svg, "<path class=\"line\" d=\"M{}\"/>", path.join("L"));
            }
            for (x, y, point) in places {
                self.draw_range(x, point.range);
                let Column { name, unit } = &self.x_column;
                let at = format!("{name} {} {unit}", point.x.shown());
                let tip = line.tip(at.trim_end(), point);
                let _ = write!(
                    self.svg,
                    "<circle class=\"dot\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>\
                     <circle class=\"hit\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"11\" tabindex=\"0\" \
                     data-tip=\"{tip}\"/>"
                );
            }
            self.svg.push_str("</g>");
        }
        self.svg
    }

    fn draw_bars(mut self, chart: &Chart, table: &Table, lines: &[Line]) -> String {
        let x_index = chart.column(table, &chart.x).0;
        let slot = (WIDTH - LEFT - RIGHT) / table.rows.len().max(1) as f64;
        let beside = if chart.kind == ChartKind::Stacks { 1 } else { lines.len().max(1) };
        let width = slot * BARS_WIDTH / beside as f64;
        for (row, cells) in table.rows.iter().enumerate() {
            let middle = LEFT + (row as f64 + 0.5) * slot;
            let at = cells[x_index].shown();
            let _ = write!(
                self.svg,
                "<text class=\"tick\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                HEIGHT - BOTTOM + 18.0,
                escape(&at)
            );
            let mut below = 0.0;
            for (index, line) in lines.iter().enumerate() {
                let Some(point) = line.points.iter().find(|point| point.row == row) else {
                    continue;
                };
                let shift = if beside == 1 { 0.0 } else { index as f64 * width };
                let left = middle - slot * BARS_WIDTH / 2.0 + shift;
                self.draw_bar(line, point, index % COLOURS, &at, (left, width, below));
                if chart.kind == ChartKind::Stacks {
                    below += point.y;
                }
            }
        }
        self.svg
    }

    /// `place`: left edge and width on the drawing, and the figure it stands on.
    fn draw_bar(
        &mut self,
        line: &Line,
        point: &Point,
        colour: usize,
        at: &str,
        place: (f64, f64, f64),
    ) {
        let (left, width, below) = place;
        let bottom = self.y_of(below).unwrap_or(HEIGHT - BOTTOM);
        let top = self.y_of(below + point.y).unwrap_or(bottom);
        let height = (bottom - top).max(0.0);
        let _ = write!(
            self.svg,
            "<g class=\"s{colour}\"><rect class=\"bar\" x=\"{left:.1}\" y=\"{top:.1}\" \
             width=\"{:.1}\" height=\"{height:.1}\" tabindex=\"0\" data-tip=\"{}\"/>",
            (width - 1.5).max(0.5),
            line.tip(at, point)
        );
        self.draw_range(left + width / 2.0, point.range);
        self.svg.push_str("</g>");
    }

    fn draw_range(&mut self, x: f64, range: Option<(f64, f64)>) {
        let Some((low, high)) = range.filter(|(low, high)| high > low) else { return };
        let (Some(low), Some(high)) = (self.y_of(low), self.y_of(high)) else { return };
        let (left, right) = (x - 4.0, x + 4.0);
        let _ = write!(
            self.svg,
            "<path class=\"range\" d=\"M{left:.1} {low:.1}H{right:.1}M{left:.1} {high:.1}\
             H{right:.1}M{x:.1} {low:.1}V{high:.1}\"/>"
        );
    }

    fn x_of(&self, value: f64) -> Option<f64> {
        Some(LEFT + self.x.as_ref()?.place(value)? * (WIDTH - LEFT - RIGHT))
    }

    fn y_of(&self, value: f64) -> Option<f64> {
        let bottom = HEIGHT - BOTTOM;
        Some(bottom - self.y.place(value)? * (bottom - TOP))
    }
}

/// What stands on top of each other in a row, together.
fn stack(lines: &[Line], row: usize) -> f64 {
    let points = lines.iter().flat_map(|line| &line.points);
    points.filter(|point| point.row == row).map(|point| point.y).sum()
}

/// Ticks are round: no digits beyond those that they need.
fn tick_text(value: f64) -> String {
    if value.abs() >= 1000.0 || value == 0.0 {
        return shown(value.round());
    }
    let digits = format!("{value:.4}");
    digits.trim_end_matches('0').trim_end_matches('.').to_owned()
}
