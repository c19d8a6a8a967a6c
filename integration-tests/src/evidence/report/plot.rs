//! The plots of a report, as SVG.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (900, 500);
/// Colours that people with any colour vision can tell apart (Okabe and Ito, Color Universal Design, 2008).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];

/// A median and the interval it is in.
#[derive(Clone, Copy, Debug)]
struct Point {
    x: f64,
    median: f64,
    low: f64,
    high: f64,
}

/// Points by what they are called in the legend.
type PlotSeries = Vec<(String, Vec<Point>)>;

/// Draws whatever a report, as in `report.json`, has the figures for.
pub fn draw(report: &Value, directory: &Path) -> Result<Vec<PathBuf>> {
    let figures = Figures(report["figures"].as_array().cloned().unwrap_or_default());
    let mut files = Vec::new();
    let mut file = |name: String| {
        let file = directory.join(name);
        files.push(file.clone());
        file
    };
    for (fixed, chosen) in figures.groups("syn_response_ms", &["runtime", "protocol"]) {
        let [runtime, protocol] = [&fixed[0], &fixed[1]];
        let series =
            chosen.series("trigger", "round_trip_ms", &["warm", "syn", "accept", "first_byte", "request"]);
        let title =
            format!("First answer over {protocol}, {runtime}, a function that initialises for 250 ms");
        let x = ("round trip from client to node (ms)", Some((250.0, "handshake = initialisation")));
        lines(
            &file(format!("syn-{runtime}-{protocol}.svg")),
            &[(title, series)],
            x,
            "until the answer (ms)",
        )?;
    }
    for (fixed, chosen) in figures.groups("both_ms", &["runtime"]) {
        let mut charts = Vec::new();
        for (database, chosen) in chosen.groups("both_ms", &["database_round_trip_ms"]) {
            let series = chosen.series("way", "round_trip_ms", &["warm", "all", "syn", "inject", "neither"]);
            charts.push((format!("{}, database {} ms away", fixed[0], database[0]), series));
        }
        let x = ("round trip from client to node (ms)", None);
        lines(&file(format!("both-{}.svg", fixed[0])), &charts, x, "until the answer (ms)")?;
    }
    for (fixed, chosen) in figures.groups("peer_ms", &["round_trip_ms", "database_round_trip_ms"]) {
        let title =
            format!("First and second answer, client {} ms and database {} ms away", fixed[0], fixed[1]);
        let series = chosen.bars("case", "peer", &["cold", "warm"]);
        bars(
            &file(format!("peers-{}-{}.svg", fixed[0], fixed[1])),
            &title,
            &series,
            "until the answer (ms)",
            false,
        )?;
    }
    for (name, title, group, y) in [
        (
            "inject_get_us",
            "Getting a TCP connection, by what is added to the handshake (ms)",
            "added_ms",
            "time (us)",
        ),
        (
            "inject_lifecycle_ms",
            "A Docker container's life, by what is added to the handshake (ms)",
            "added_ms",
            "time (ms)",
        ),
        (
            "inject_first_result_ms",
            "From the entry of a process to its first result, by the database's round trip (ms)",
            "database_round_trip_ms",
            "time (ms)",
        ),
    ] {
        let ways = ["injected", "relayed", "socket", "pgbouncer_unix", "pgbouncer_tcp", "direct"];
        let series = figures.named(name).bars("way", group, &ways);
        if !series.is_empty() {
            let log = name != "inject_lifecycle_ms";
            bars(&file(format!("{}.svg", name.replace('_', "-"))), title, &series, y, log)?;
        }
    }
    Ok(files)
}

/// Figures as in `report.json`.
struct Figures(Vec<Value>);

impl Figures {
    fn named(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|figure| figure["name"] == name).cloned().collect())
    }

    /// Those of a name, apart by the values of these labels, in the order of numbers.
    fn groups(&self, name: &str, labels: &[&str]) -> Vec<(Vec<String>, Self)> {
        let mut groups: Vec<(Vec<String>, Self)> = Vec::new();
        for figure in self.named(name).0 {
            let values: Vec<_> = labels.iter().map(|key| label(&figure, key)).collect();
            match groups.iter_mut().find(|(known, _)| *known == values) {
                Some((_, figures)) => figures.0.push(figure),
                None => groups.push((values, Self(vec![figure]))),
            }
        }
        groups.sort_by(|(one, _), (other, _)| number(&one[0]).total_cmp(&number(&other[0])));
        groups
    }

    /// A line for each value of `series` that there is, in this order, over the numbers of `x`.
    fn series(&self, series: &str, x: &str, order: &[&str]) -> PlotSeries {
        let points = |name: &&str| {
            let of_name = self.0.iter().filter(|figure| figure["labels"][series] == **name);
            let mut points: Vec<_> =
                of_name.filter_map(|figure| point(figure, number(&label(figure, x)))).collect();
            points.sort_by(|one, other| one.x.total_cmp(&other.x));
            ((*name).to_owned(), points)
        };
        order.iter().map(points).filter(|(_, points)| !points.is_empty()).collect()
    }

    /// A bar of each value of `series` for each value of `group`: the groups by name, with their bars in this order.
    fn bars(&self, series: &str, group: &str, order: &[&str]) -> Vec<(String, BTreeMap<String, Point>)> {
        let mut groups: Vec<(String, BTreeMap<String, Point>)> = Vec::new();
        for figure in &self.0 {
            let (name, of) = (label(figure, series), label(figure, group));
            let Some(place) = order.iter().position(|known| *known == name) else { continue };
            let Some(point) = point(figure, 0.0) else { continue };
            // The place comes first, so that the map has the order.
            let key = format!("{place} {name}");
            match groups.iter_mut().find(|(known, _)| *known == of) {
                Some((_, bars)) => drop(bars.insert(key, point)),
                None => groups.push((of, BTreeMap::from([(key, point)]))),
            }
        }
        let first = |bars: &BTreeMap<String, Point>| bars.values().next().map_or(0.0, |point| point.median);
        groups.sort_by(|(one, bars), (other, others)| {
            let by_number = number(one).total_cmp(&number(other));
            if by_number.is_eq() { first(bars).total_cmp(&first(others)) } else { by_number }
        });
        groups
    }
}

fn label(figure: &Value, key: &str) -> String {
    figure["labels"][key].as_str().unwrap_or_default().to_owned()
}

/// What is no number comes last.
fn number(text: &str) -> f64 {
    text.parse().unwrap_or(f64::MAX)
}

fn point(figure: &Value, x: f64) -> Option<Point> {
    let median = figure["p50"].as_f64()?;
    let [low, high] = ["p50_low", "p50_high"].map(|key| figure[key].as_f64().unwrap_or(median));
    Some(Point { x, median, low, high })
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// Charts beside each other, with the same axes.
fn lines(
    file: &Path,
    charts: &[(String, PlotSeries)],
    (x, mark): (&str, Option<(f64, &str)>),
    y: &str,
) -> Result<()> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let points = || charts.iter().flat_map(|(_, series)| series).flat_map(|(_, points)| points);
    let right = points().map(|point| point.x).fold(1.0, f64::max) * 1.03;
    let top = points().map(|point| point.high).fold(1.0, f64::max) * 1.1;
    for (area, (title, series)) in root.split_evenly((1, charts.len())).iter().zip(charts) {
        line_chart(area, title, series, (x, right), (y, top), mark)
            .map_err(|error| anyhow!("{}: {error}", file.display()))?;
    }
    root.present().map_err(|error| anyhow!("{}: {error}", file.display()))
}

type DrawResult<'a> =
    std::result::Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn line_chart<'a>(
    area: &DrawingArea<SVGBackend<'a>, Shift>,
    title: &str,
    series: &PlotSeries,
    (x, right): (&str, f64),
    (y, top): (&str, f64),
    mark: Option<(f64, &str)>,
) -> DrawResult<'a> {
    let narrow = area.dim_in_pixel().0 < SIZE.0;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", if narrow { 14 } else { 18 }))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(x).y_desc(y).light_line_style(WHITE).bold_line_style(RGBColor(220, 220, 220));
    mesh.x_label_formatter(&|value| format!("{value:.0}")).y_label_formatter(&|value| format!("{value:.0}"));
    mesh.x_labels(if narrow { 5 } else { 10 }).draw()?;
    if let Some((at, text)) = mark.filter(|(at, _)| *at < right) {
        let grey = RGBColor(130, 130, 130);
        chart.draw_series([PathElement::new(vec![(at, 0.0), (at, top)], grey)])?;
        chart.draw_series([Text::new(
            text.to_owned(),
            (at - right * 0.24, top * 0.04),
            ("sans-serif", 13).into_font().color(&grey),
        )])?;
    }
    for (index, (name, points)) in series.iter().enumerate() {
        let colour = colour(index);
        let line = points.iter().map(|point| (point.x, point.median));
        chart
            .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
            .label(name.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        chart.draw_series(
            points.iter().map(|point| Circle::new((point.x, point.median), 3, colour.filled())),
        )?;
        chart.draw_series(points.iter().map(|point| {
            PathElement::new([(point.x, point.low), (point.x, point.high)], colour.stroke_width(1))
        }))?;
    }
    let mut legend = chart.configure_series_labels();
    legend
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3));
    legend.label_font(("sans-serif", 13)).draw()
}

/// Bars in groups, with a logarithmic axis if `log`.
fn bars(
    file: &Path,
    title: &str,
    groups: &[(String, BTreeMap<String, Point>)],
    y: &str,
    log: bool,
) -> Result<()> {
    bar_chart(file, title, groups, y, log).map_err(|error| anyhow!("{}: {error}", file.display()))
}

#[expect(clippy::cast_precision_loss, reason = "small counts")]
fn bar_chart<'a>(
    file: &'a Path,
    title: &str,
    groups: &[(String, BTreeMap<String, Point>)],
    y: &str,
    log: bool,
) -> DrawResult<'a> {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let points = || groups.iter().flat_map(|(_, bars)| bars.values());
    let scale = |value: f64| if log { value.max(f64::MIN_POSITIVE).log10() } else { value };
    let bottom =
        if log { points().map(|point| scale(point.median)).fold(f64::MAX, f64::min).floor() } else { 0.0 };
    let highest = points().map(|point| scale(point.high)).fold(bottom, f64::max);
    let top = highest + (highest - bottom) * 0.18;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(66)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..groups.len() as f64, bottom..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().disable_x_axis().y_desc(y);
    mesh.light_line_style(WHITE).bold_line_style(RGBColor(220, 220, 220));
    let unscaled =
        |value: &f64| if log { format!("{:.3}", 10_f64.powf(*value)) } else { format!("{value:.0}") };
    let short = |value: &f64| {
        let text = unscaled(value);
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
    };
    mesh.y_labels(if log { (top - bottom).ceil() as usize + 1 } else { 10 })
        .y_label_formatter(&short)
        .draw()?;
    let mut names: Vec<&String> = groups.iter().flat_map(|(_, bars)| bars.keys()).collect();
    names.sort();
    names.dedup();
    let width = 0.84 / names.len().max(1) as f64;
    for (index, name) in names.iter().enumerate() {
        let colour = colour(index);
        let of_name =
            || groups.iter().enumerate().filter_map(|(at, (_, bars))| Some((at as f64, bars.get(*name)?)));
        let left = move |at: f64| at + 0.08 + index as f64 * width;
        let bar = |(at, point): (f64, &Point)| {
            let corners = [(left(at), bottom), (left(at) + width * 0.92, scale(point.median))];
            Rectangle::new(corners, colour.filled())
        };
        chart
            .draw_series(of_name().map(bar))?
            .label(name.split_once(' ').map_or(name.as_str(), |(_, name)| name))
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], colour.filled()));
        chart.draw_series(of_name().map(|(at, point)| {
            let middle = left(at) + width * 0.46;
            PathElement::new([(middle, scale(point.low)), (middle, scale(point.high))], BLACK)
        }))?;
        chart.draw_series(of_name().map(|(at, point)| {
            let text = if point.median < 10.0 {
                format!("{:.2}", point.median)
            } else {
                format!("{:.0}", point.median)
            };
            let place = (left(at), scale(point.high) + (top - bottom) * 0.035);
            Text::new(text, place, ("sans-serif", 10).into_font())
        }))?;
    }
    let plot = chart.plotting_area().get_pixel_range();
    let step = f64::from(plot.0.end - plot.0.start) / groups.len().max(1) as f64;
    for (at, (name, _)) in groups.iter().enumerate() {
        let x = f64::from(plot.0.start) + step * (at as f64 + 0.08);
        // Neighbours are on different heights, so that long names do not run into each other.
        let y = plot.1.end + if name.len() > 8 && at % 2 == 1 { 30 } else { 12 };
        root.draw(&Text::new(name.clone(), (x as i32, y), ("sans-serif", 12).into_font()))?;
    }
    let mut legend = chart.configure_series_labels();
    legend
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3));
    legend.label_font(("sans-serif", 13)).draw()?;
    root.present()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::report::Figure;
    use crate::lab::Scratch;
    use serde_json::json;
    use std::fs;

    #[test]
    fn what_there_are_figures_for_is_drawn() {
        let directory = Scratch::new("plots").unwrap();
        assert_eq!(draw(&json!({ "figures": [] }), directory.path()).unwrap(), Vec::<PathBuf>::new());
        let mut figures = Vec::new();
        for (trigger, ms) in [("syn", 260.0), ("warm", 1.5)] {
            for at in ["0", "250"] {
                let labels =
                    [("runtime", "oci"), ("protocol", "http"), ("trigger", trigger), ("round_trip_ms", at)];
                figures.push(Figure::new("syn_response_ms", &labels, "ms", &[ms, ms + 1.0]).unwrap().value());
            }
        }
        let labels = [("way", "direct"), ("added_ms", "10")];
        figures.push(Figure::new("inject_get_us", &labels, "us", &[10_000.0]).unwrap().value());
        let files = draw(&json!({ "figures": figures }), directory.path()).unwrap();
        let names: Vec<_> = files.iter().map(|file| file.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["syn-oci-http.svg", "inject-get-us.svg"]);
        let texts = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect::<Vec<_>>();
        for word in ["handshake = initialisation", "syn", "warm", "until the answer (ms)"] {
            assert!(texts[0].contains(word), "{word}");
        }
        assert!(texts[1].contains("direct") && texts[1].contains("10000"));
    }
}
