//! Plots as SVG: lines over time, lines over steps, bars. Written with plotters' SVG back end; no fonts are embedded, nothing is loaded.
//!
//! The background is opaque white with dark text: a page may be light or dark, and an image cannot know which.

mod bars;
mod steps;

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

pub use bars::{Bar, bars};
pub use steps::{Series, steps};

use crate::LabError;
use crate::error::Result;

/// A line with a name.
#[derive(Debug, Clone)]
pub struct Line {
    /// Shown in the legend; lines without a name share one colour and no legend.
    pub name: Option<String>,
    /// In the order of x.
    pub points: Vec<(f64, f64)>,
}

/// What is written around the lines.
#[derive(Debug, Clone)]
pub struct Labels<'a> {
    /// Above.
    pub title: &'a str,
    /// Below.
    pub x: &'a str,
    /// Left.
    pub y: &'a str,
}

const SIZE: (u32, u32) = (900, 480);

/// Refuses a path where no plot can be written, so that a slip is told before anything is measured. What is there stays as it is.
pub fn check(path: &Path) -> Result<()> {
    let is_new = !path.exists();
    let opened = std::fs::File::options().append(true).create(true).open(path);
    opened.map_err(LabError::io(format!("cannot write the plot {}; choose another path", path.display())))?;
    if is_new {
        // Ignored: an empty file is no harm, and the plot will replace it.
        let _ = std::fs::remove_file(path);
    }
    Ok(())
}

/// Draws `lines` into `path`; dashed verticals stand at `marks`.
pub fn lines(path: &Path, labels: &Labels<'_>, lines: &[Line], marks: &[f64]) -> Result<()> {
    write(path, |text| draw(text, labels, lines, marks))
}

/// Dark enough on white, told apart by most eyes; Palette99 has yellows.
const COLOURS: [RGBColor; 12] = [
    RGBColor(31, 119, 180),
    RGBColor(214, 39, 40),
    RGBColor(44, 140, 60),
    RGBColor(148, 80, 180),
    RGBColor(200, 110, 0),
    RGBColor(110, 70, 50),
    RGBColor(200, 60, 150),
    RGBColor(20, 150, 160),
    RGBColor(100, 100, 100),
    RGBColor(130, 130, 0),
    RGBColor(20, 50, 110),
    RGBColor(90, 160, 90),
];

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

/// What drawing answers; plotters' errors have no common type.
type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

fn write(path: &Path, draw: impl FnOnce(&mut String) -> Drawn) -> Result<()> {
    let mut text = String::new();
    draw(&mut text).map_err(|error| LabError::Invalid(format!("cannot draw {}: {error}", path.display())))?;
    std::fs::write(path, text).map_err(LabError::io(format!("cannot write {}", path.display())))
}

/// An empty white picture.
fn canvas(
    text: &mut String,
    size: (u32, u32),
) -> std::result::Result<DrawingArea<SVGBackend<'_>, Shift>, Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, size).into_drawing_area();
    area.fill(&WHITE)?;
    Ok(area)
}

fn draw(text: &mut String, labels: &Labels<'_>, lines: &[Line], marks: &[f64]) -> Drawn {
    let area = canvas(text, SIZE)?;
    let points = || lines.iter().flat_map(|line| &line.points);
    let largest = |of: fn(&(f64, f64)) -> f64| points().map(of).fold(1e-9, f64::max) * 1.02;
    let (right, top) = (largest(|point| point.0), largest(|point| point.1));
    let mut chart = ChartBuilder::on(&area)
        .caption(labels.title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    chart.configure_mesh().x_desc(labels.x).y_desc(labels.y).light_line_style(WHITE).draw()?;
    for mark in marks {
        chart.draw_series(LineSeries::new([(*mark, 0.0), (*mark, top)], BLACK.mix(0.4)))?;
    }
    for (index, line) in lines.iter().enumerate() {
        let colour = match line.name {
            Some(_) => colour(index).to_rgba(),
            None => BLUE.mix(0.35),
        };
        let series = chart.draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?;
        if let Some(name) = &line.name {
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
        }
    }
    if lines.iter().any(|line| line.name.is_some()) {
        let position = SeriesLabelPosition::UpperLeft;
        chart
            .configure_series_labels()
            .position(position)
            .border_style(BLACK.mix(0.2))
            .background_style(WHITE)
            .draw()?;
    }
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a path that is found to be wrong only after hours of measuring, and a check that spoils what is there.
    #[test]
    fn a_path_is_checked_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plot.svg");
        check(&path).unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "old").unwrap();
        check(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert!(check(dir.path()).is_err() && check(&dir.path().join("none/plot.svg")).is_err());
    }

    /// Catches a plot without its lines or its words, and one that fails without points.
    #[test]
    fn lines_and_words_are_drawn() {
        let labels = Labels { title: "progress", x: "seconds", y: "share" };
        let named = Line { name: Some("n1".into()), points: vec![(0.0, 0.0), (1.0, 1.0)] };
        let mut text = String::new();
        draw(&mut text, &labels, &[named], &[0.5]).unwrap();
        assert!(text.starts_with("<svg") && text.contains("progress") && text.contains("n1"), "{text}");
        draw(&mut String::new(), &labels, &[], &[]).unwrap();
    }
}
