//! The table as a picture: one bar per row for the throughput, with lowest and highest, the CPU time in its label.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use super::{Report, Row};

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 26;
const MARGIN: u32 = 70;

/// The picture as SVG.
pub fn draw(report: &Report) -> Result<String> {
    let mut text = String::new();
    paint(report, &mut text).map_err(|error| anyhow!("cannot draw the bench: {error}"))?;
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
