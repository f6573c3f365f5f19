//! Lines over steps that are equally far apart whatever their values are, such as 1, 3, 7, 15, 31 hosts. The vertical axis is logarithmic:
//! who is 3 % slower and who is 30 times slower are seen in the same picture.

use std::path::Path;

use plotters::coord::ranged1d::IntoSegmentedCoord;
use plotters::prelude::*;

use super::{Drawn, Labels, canvas, write};
use crate::error::Result;

/// One line: a value per step, where there is one.
#[derive(Debug, Clone)]
pub struct Series {
    /// Shown in the legend.
    pub name: String,
    /// In the order of the steps; above 0.
    pub values: Vec<Option<f64>>,
    /// Drawn thicker: what the picture is about.
    pub strong: bool,
}

const SIZE: (u32, u32) = (900, 480);
/// Room for the names on the right.
const BESIDE: i32 = 190;
/// Where the vertical axis has its lines, as far as there are values.
const TICKS: [f64; 13] = [0.5, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0];

/// Draws `series` over `steps` into `path`.
pub fn steps(path: &Path, labels: &Labels<'_>, steps: &[String], series: &[Series]) -> Result<()> {
    write(path, |text| draw(text, labels, steps, series))
}

fn draw(text: &mut String, labels: &Labels<'_>, steps: &[String], series: &[Series]) -> Drawn {
    let area = canvas(text, SIZE)?;
    let values = || series.iter().flat_map(|line| line.values.iter().flatten().copied());
    let top = values().fold(1.5, f64::max) * 1.15;
    let bottom = values().fold(0.9, f64::min).max(0.01);
    let ticks: Vec<f64> = TICKS.into_iter().filter(|tick| (bottom..top).contains(tick)).collect();
    let last = steps.len().saturating_sub(1);
    let mut chart = ChartBuilder::on(&area)
        .caption(labels.title, ("sans-serif", 18))
        .margin(12)
        .margin_right(BESIDE)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d((0..last).into_segmented(), (bottom..top).log_scale().with_key_points(ticks))?;
    let name = |place: &SegmentValue<usize>| match place {
        SegmentValue::CenterOf(place) | SegmentValue::Exact(place) => steps.get(*place).cloned().unwrap_or_default(),
        SegmentValue::Last => String::new(),
    };
    chart
        .configure_mesh()
        .x_desc(labels.x)
        .y_desc(labels.y)
        .disable_x_mesh()
        .label_style(("sans-serif", 13))
        .axis_desc_style(("sans-serif", 13))
        .light_line_style(WHITE)
        .x_labels(steps.len().max(1))
        .x_label_formatter(&name)
        .y_label_formatter(&|value| format!("{value}"))
        .draw()?;
    for (index, line) in series.iter().enumerate() {
        let colour = super::colour(index);
        let style = colour.stroke_width(if line.strong { 4 } else { 2 });
        let points = line.values.iter().enumerate().filter_map(|(x, y)| Some((SegmentValue::CenterOf(x), (*y)?)));
        let points: Vec<_> = points.collect();
        let size = if line.strong { 5 } else { 3 };
        chart.draw_series(points.iter().map(|point| Circle::new(point.clone(), size, colour.filled())))?;
        chart.draw_series(LineSeries::new(points, style))?;
        // Beside the lines, not over them; plotters' own legend is cut off outside of the axes.
        let (x, y) = (SIZE.0 as i32 - BESIDE + 16, 48 + 20 * index as i32);
        area.draw(&PathElement::new([(x, y), (x + 20, y)], style))?;
        area.draw(&Text::new(line.name.as_str(), (x + 28, y - 6), ("sans-serif", 13)))?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a plot that fails with one step, without values, or with a value missing; and names that are not drawn.
    #[test]
    fn gaps_and_single_steps_are_drawn() {
        let labels = Labels { title: "completion", x: "hosts", y: "÷ bound" };
        let line = |values: Vec<Option<f64>>| Series { name: "twin".into(), values, strong: true };
        let mut text = String::new();
        draw(&mut text, &labels, &["1".into(), "31".into()], &[line(vec![None, Some(31.0)])]).unwrap();
        assert!(text.contains("twin") && text.contains("\n31\n") && text.contains("completion"), "{text}");
        draw(&mut String::new(), &labels, &["1".into()], &[line(vec![Some(1.0)])]).unwrap();
        draw(&mut String::new(), &labels, &[], &[]).unwrap();
    }
}
