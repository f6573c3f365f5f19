//! A bar per row, with a text beside it, and a line that no bar should cross.

use std::path::Path;

use plotters::prelude::*;

use super::{Drawn, canvas, write};
use crate::error::Result;

/// One row.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Left of it.
    pub name: String,
    /// Its length.
    pub value: f64,
    /// Behind it.
    pub text: String,
}

const WIDTH: u32 = 900;
const ROW_HEIGHT: u32 = 24;
/// What the title takes, and the axis.
const TOP: u32 = 50;
const BOTTOM: u32 = 50;
const WITHIN: RGBColor = RGBColor(46, 134, 93);
const BEYOND: RGBColor = RGBColor(196, 78, 60);

/// Draws `bars` into `path`; those longer than `limit` in another colour.
pub fn bars(path: &Path, title: &str, x: &str, bars: &[Bar], limit: Option<f64>) -> Result<()> {
    write(path, |text| draw(text, title, x, bars, limit))
}

fn draw(text: &mut String, title: &str, x: &str, bars: &[Bar], limit: Option<f64>) -> Drawn {
    let area = canvas(text, (WIDTH, TOP + ROW_HEIGHT * bars.len().max(1) as u32 + BOTTOM))?;
    area.draw(&Text::new(title, (12, 14), ("sans-serif", 18)))?;
    let longest = bars.iter().map(|bar| bar.value).chain(limit).fold(1e-9, f64::max) * 1.05;
    let mut chart = ChartBuilder::on(&area)
        .margin_top(TOP)
        .margin_right(230)
        .x_label_area_size(BOTTOM - 6)
        .y_label_area_size(170)
        .build_cartesian_2d(0.0..longest, bars.len().max(1) as f64..0.0)?;
    // Left alone, plotters makes words as small as the picture is low.
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .light_line_style(WHITE)
        .label_style(("sans-serif", 12))
        .axis_desc_style(("sans-serif", 13))
        .x_desc(x)
        .draw()?;
    for (index, bar) in bars.iter().enumerate() {
        let (top, middle, bottom) = (index as f64 + 0.15, index as f64 + 0.5, index as f64 + 0.85);
        let colour = if limit.is_some_and(|limit| bar.value > limit) { BEYOND } else { WITHIN };
        chart.draw_series([Rectangle::new([(0.0, top), (bar.value, bottom)], colour.filled())])?;
        let (end, y) = chart.plotting_area().map_coordinate(&(bar.value, middle));
        area.draw(&Text::new(bar.name.as_str(), (12, y - 6), ("sans-serif", 13)))?;
        area.draw(&Text::new(bar.text.as_str(), (end + 6, y - 6), ("sans-serif", 12)))?;
    }
    if let Some(limit) = limit {
        chart.draw_series(LineSeries::new([(limit, 0.0), (limit, bars.len() as f64)], BLACK.stroke_width(1)))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches bars without their words, a limit that colours nothing, and a plot that fails without rows.
    #[test]
    fn bars_beyond_the_limit_differ() {
        let bar = |value| Bar { name: "kill:root".into(), value, text: "0.2 s".into() };
        let mut text = String::new();
        draw(&mut text, "faults", "÷ bound", &[bar(1.1), bar(1.4)], Some(1.25)).unwrap();
        assert!(text.contains("kill:root") && text.contains("0.2 s"), "{text}");
        assert!(text.contains("#2E865D") && text.contains("#C44E3C"), "{text}");
        draw(&mut String::new(), "faults", "÷ bound", &[], None).unwrap();
    }
}
