//! What commands print: text that survives a closed pipe, JSON, tables of at most 100 columns, numbers with units.

use std::io::{self, Write};

use anyhow::{Context, Result};
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use serde::Serialize;

/// The widest table, whatever the terminal is.
const TABLE_COLUMNS: u16 = 100;
/// Around each cell.
const PADDING: usize = 2;
/// What is shortened keeps so many characters.
const SHORTEST: usize = 12;

/// Writes `text` and a line end to standard output. A reader that closed the pipe is an error here, never a panic.
pub fn line(text: impl AsRef<str>) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush()).context("cannot write to standard output")
}

/// Writes `value` as indented JSON.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(serde_json::to_string_pretty(value).context("cannot encode the answer as JSON")?)
}

/// Whether `error` only says that the reader of our output went away (`faasnet nodes | head -1`).
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// A table without frame: `columns` are the headings; those that begin with `>` are right-aligned, in one that begins with `~` cells are
/// shortened where the table would be too wide. Text is broken between words only, so that names and numbers can be copied: a table is
/// wider than 100 columns only where its words leave no choice.
pub fn table(columns: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let headings: Vec<String> = columns.iter().map(|column| column.trim_start_matches(['>', '~']).into()).collect();
    let mut rows: Vec<Vec<String>> = rows.into_iter().collect();
    let longest = |rows: &[Vec<String>], index: usize| -> usize {
        let cells = rows.iter().filter_map(|row| row.get(index)).chain(headings.get(index));
        cells.flat_map(|cell| cell.split_whitespace()).map(|word| word.chars().count()).max().unwrap_or(0)
    };
    let width = |rows: &[Vec<String>]| (0..columns.len()).map(|index| longest(rows, index) + PADDING).sum::<usize>();
    for index in (0..columns.len()).filter(|index| columns[*index].starts_with('~')) {
        let excess = width(&rows).saturating_sub(TABLE_COLUMNS.into());
        let most = longest(&rows, index).saturating_sub(excess).max(SHORTEST);
        rows.iter_mut().filter_map(|row| row.get_mut(index)).for_each(|cell| *cell = shortened(cell, most));
    }
    let wide = u16::try_from(width(&rows)).unwrap_or(u16::MAX);
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(wide.max(TABLE_COLUMNS)).set_header(&headings);
    let words: Vec<u16> =
        (0..columns.len()).map(|index| u16::try_from(longest(&rows, index) + PADDING).unwrap_or(u16::MAX)).collect();
    for row in rows {
        table.add_row(row);
    }
    for (index, word) in words.into_iter().enumerate() {
        if let Some(column) = table.column_mut(index) {
            column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(word)));
        }
    }
    for (index, heading) in columns.iter().enumerate() {
        if let (true, Some(column)) = (heading.starts_with('>'), table.column_mut(index)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>().trim_end().to_owned()
}

/// `text` with at most `most` characters: what is in the middle goes.
fn shortened(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let head = (most - 1) / 3;
    let tail = most - 1 - head;
    let head: String = text.chars().take(head).collect();
    head + "…" + &text.chars().skip(length - tail).collect::<String>()
}

/// Bytes with a binary unit, three significant digits: `256 MiB`, `1.50 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = match (unit, value) {
        (0, _) => 0,
        (_, value) if value < 9.995 => 2,
        (_, value) if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Seconds with three significant digits: `0.123 s`, `12.3 s`.
pub fn seconds(value: f64) -> String {
    match value {
        value if value < 9.995 => format!("{value:.2} s"),
        value if value < 99.95 => format!("{value:.1} s"),
        value => format!("{value:.0} s"),
    }
}

/// The first line of `text` joined with the others by spaces, so that an error stays one line.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches numbers that jump in width or lose their unit at a boundary.
    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        let shown: Vec<_> = [0, 1, 1023, 1024, 4 << 20, (4 << 20) - 1, 268_435_456, 1_610_612_736].map(bytes).into();
        assert_eq!(shown, ["0 B", "1 B", "1023 B", "1.00 KiB", "4.00 MiB", "4.00 MiB", "256 MiB", "1.50 GiB"]);
    }

    /// Catches a table that is wider than a narrow terminal, or whose numbers do not line up.
    #[test]
    fn tables_fit_in_a_hundred_columns() {
        let wide = "many words ".repeat(30);
        let text = table(&["node", ">bytes"], [vec![wide, "1".into()], vec!["n1".into(), "100".into()]]);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }

    /// Catches a name that is broken in two and cannot be copied; a reference goes first, then the hundred columns.
    #[test]
    fn names_are_never_broken() {
        let (name, reference) = ("image-layout-two-692e66345d82".repeat(2), "127.0.0.1:15000/layout:latest".repeat(2));
        let prose = "some words that say more about it than fits into a line of this table, which is narrow";
        let row = vec![name.clone(), prose.into(), reference];
        let text = table(&["function", "what", "~reference"], [row]);
        assert!(text.contains(&name) && text.contains("…") && text.contains(":latest"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
        let text = table(&["name", ">bytes"], [vec!["x".repeat(120), "1".into()]]);
        assert!(text.contains(&"x".repeat(120)), "{text}");
    }
}
