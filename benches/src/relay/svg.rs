//! The table as a picture: one bar per row for the throughput, with lowest and highest, the CPU time in its label; for a sweep one line
//! per engine and mode over the knob's values.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Report, Row};

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 26;
const MARGIN: u32 = 70;

/// The picture as SVG.
pub fn draw(report: &Report) -> Result<String> {
    let mut text = String::new();
    let sweep = report.rows.first().and_then(|row| row.sweep.as_ref());
    let painted = match sweep {
        Some(sweep) => paint_sweep(report, &sweep.key, &mut text),
        None => paint(report, &mut text),
    };
    painted.map_err(|error| anyhow!("cannot draw the bench: {error}"))?;
    Ok(text)
}

fn paint(report: &Report, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let rows = &report.rows;
    let height = MARGIN + ROW_HEIGHT * rows.len() as u32 + MARGIN;
    let canvas = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let fastest = rows.iter().map(|row| row.gib_per_s_max).fold(0.1, f64::max);
    let (above, _) = report.remarks();
    canvas.draw(&Text::new(
        "Relay to two children, GiB/s from upstream (bar: median, line: lowest to highest)",
        (12, 10),
        ("sans-serif", 16),
    ))?;
    canvas.draw(&Text::new(above, (12, 34), ("sans-serif", 11)))?;
    let mut chart = ChartBuilder::on(&canvas)
        .margin_top(MARGIN)
        .margin_right(150)
        .x_label_area_size(40)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..fastest * 1.05, rows.len() as f64..0.0)?;
    chart.configure_mesh().disable_y_mesh().disable_y_axis().x_desc("GiB/s").draw()?;
    for (index, row) in rows.iter().enumerate() {
        let (top, middle, bottom) = (index as f64 + 0.15, index as f64 + 0.5, index as f64 + 0.85);
        let color = if row.engine.is_ours() { RGBColor(46, 134, 93) } else { RGBColor(150, 158, 168) };
        chart.draw_series([Rectangle::new([(0.0, top), (row.gib_per_s, bottom)], color.filled())])?;
        let span = [(row.gib_per_s_min, middle), (row.gib_per_s_max, middle)];
        chart.draw_series([PathElement::new(span, BLACK.stroke_width(1))])?;
        let area = chart.plotting_area();
        let (x, y) = area.map_coordinate(&(0.0, middle));
        canvas.draw(&Text::new(format!("{} {}", row.mode, row.engine), (12, y - 6), ("sans-serif", 12)))?;
        let (end, _) = area.map_coordinate(&(row.gib_per_s_max, middle));
        canvas.draw(&Text::new(label(row), (end.max(x) + 6, y - 6), ("sans-serif", 12)))?;
    }
    canvas.present()?;
    Ok(())
}

fn label(row: &Row) -> String {
    format!("{:.2}, {:.2} CPU s/GiB", row.gib_per_s, row.cpu_s_per_gib)
}

const SWEEP_HEIGHT: u32 = 520;

fn paint_sweep(report: &Report, key: &str, text: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let values = values(&report.rows);
    let canvas = SVGBackend::with_string(text, (WIDTH, SWEEP_HEIGHT)).into_drawing_area();
    canvas.fill(&WHITE)?;
    let title =
        format!("Relay to two children over {key}, GiB/s from upstream (line: median, bars: lowest to highest)");
    canvas.draw(&Text::new(title, (12, 10), ("sans-serif", 16)))?;
    canvas.draw(&Text::new(report.remarks().0, (12, 34), ("sans-serif", 11)))?;
    let fastest = report.rows.iter().map(|row| row.gib_per_s_max).fold(0.1, f64::max);
    // Places, not quantities: values may be words, and are seldom evenly spaced.
    let last = values.len().saturating_sub(1) as f64;
    let mut chart = ChartBuilder::on(&canvas)
        .margin_top(MARGIN)
        .margin_right(20)
        .x_label_area_size(46)
        .y_label_area_size(50)
        .build_cartesian_2d(-0.3..last + 0.3, 0.0..fastest * 1.3)?;
    let name = |x: &f64| match (x.round() - x).abs() < 0.01 {
        true => values.get(x.round().max(0.0) as usize).copied().unwrap_or_default().to_owned(),
        false => String::new(),
    };
    let mut mesh = chart.configure_mesh();
    mesh.disable_x_mesh().x_labels(2 * values.len() + 1).x_label_formatter(&name).x_desc(key).y_desc("GiB/s").draw()?;
    for (index, rows) in lines(&report.rows).into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let place = |row: &Row| {
            let value = row.sweep.as_ref().map(|sweep| sweep.value.as_str());
            values.iter().position(|other| Some(*other) == value).unwrap_or(0) as f64
        };
        let points = rows.iter().map(|row| (place(row), row.gib_per_s));
        let series = chart.draw_series(LineSeries::new(points, colour.stroke_width(2)))?;
        let label = format!("{} {}", rows[0].mode, rows[0].engine);
        series.label(label).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        chart.draw_series(rows.iter().map(|row| {
            let span = [(place(row), row.gib_per_s_min), (place(row), row.gib_per_s_max)];
            PathElement::new(span, colour.stroke_width(1))
        }))?;
    }
    let mut legend = chart.configure_series_labels();
    legend.position(SeriesLabelPosition::UpperLeft).border_style(BLACK.mix(0.2)).background_style(WHITE).draw()?;
    canvas.present()?;
    Ok(())
}

/// A sweep's values in their order.
fn values(rows: &[Row]) -> Vec<&str> {
    let mut values: Vec<&str> = Vec::new();
    for value in rows.iter().filter_map(|row| row.sweep.as_ref()).map(|sweep| sweep.value.as_str()) {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}

/// The rows of each engine and mode.
fn lines(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut lines: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match lines.iter_mut().find(|line| (line[0].engine, line[0].mode) == (row.engine, row.mode)) {
            Some(line) => line.push(row),
            None => lines.push(vec![row]),
        }
    }
    lines
}
