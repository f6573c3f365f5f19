//! Shows how far nodes are: bars on a terminal, one line per change of state in a pipe, nothing with `--json`.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr, stdout};

use anyhow::Result;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output;
use crate::view::NodeView;

/// More nodes than this share one bar: a screen has only so many lines.
const MOST_BARS: usize = 24;

/// How progress is shown.
pub enum Display {
    /// Not at all.
    Silent,
    /// A line per change of state.
    Lines(HashMap<String, String>),
    /// A bar per node, or one for all.
    Bars(Bars),
}

/// The bars on a terminal; they vanish when this value does.
pub struct Bars {
    screen: MultiProgress,
    nodes: HashMap<String, ProgressBar>,
    total: Option<ProgressBar>,
}

impl Display {
    /// The display that fits where the output goes.
    pub fn new(json: bool) -> Self {
        if json {
            return Self::Silent;
        }
        if stderr().is_terminal() && stdout().is_terminal() {
            let bars = Bars { screen: MultiProgress::new(), nodes: HashMap::new(), total: None };
            return Self::Bars(bars);
        }
        Self::Lines(HashMap::new())
    }

    /// Shows the nodes as they are now.
    pub fn update(&mut self, nodes: &[NodeView]) -> Result<()> {
        match self {
            Self::Silent => Ok(()),
            Self::Lines(last) => nodes.iter().try_for_each(|node| changed(last, node)),
            Self::Bars(bars) => {
                bars.update(nodes);
                Ok(())
            }
        }
    }
}

/// A bar that counts up to `total`; nothing with `--json` or in a pipe.
pub fn count(json: bool, what: &str, total: u64) -> ProgressBar {
    if json || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(total).with_prefix(what.to_owned());
    // Ignored: a template that cannot be read leaves the default one.
    if let Ok(style) = ProgressStyle::with_template("{prefix} {pos} of {len} {wide_bar}") {
        bar.set_style(style);
    }
    bar
}

/// Prints a line when the node's state is another than the last one printed.
fn changed(last: &mut HashMap<String, String>, node: &NodeView) -> Result<()> {
    let state = if node.alive { node.state.clone() } else { format!("{} (no sign of life)", node.state) };
    if last.get(&node.name) == Some(&state) {
        return Ok(());
    }
    last.insert(node.name.clone(), state.clone());
    let details = match node.state.as_str() {
        "complete" => format!("  {} in {}", output::bytes(node.bytes_present), output::seconds(node.seconds)),
        "failed" => format!("  {}", output::one_line(&node.error)),
        "fetching" => format!("  {} of {}", output::bytes(node.bytes_present), output::bytes(node.bytes_total)),
        _ => String::new(),
    };
    output::line(format!("{}  {state}{details}", node.name))
}

impl Bars {
    fn update(&mut self, nodes: &[NodeView]) {
        if nodes.len() > MOST_BARS {
            return self.update_total(nodes);
        }
        for node in nodes {
            let screen = &self.screen;
            let bar = self.nodes.entry(node.name.clone()).or_insert_with(|| {
                let bar = screen.add(ProgressBar::new(0).with_style(style()));
                bar.set_prefix(node.name.clone());
                bar
            });
            bar.set_length(node.bytes_total);
            bar.set_position(node.bytes_present);
            bar.set_message(describe(node));
        }
    }

    fn update_total(&mut self, nodes: &[NodeView]) {
        let screen = &self.screen;
        let bar = self.total.get_or_insert_with(|| screen.add(ProgressBar::new(0).with_style(style())));
        bar.set_prefix(format!("{} nodes", nodes.len()));
        bar.set_length(nodes.iter().map(|node| node.bytes_total).sum());
        bar.set_position(nodes.iter().map(|node| node.bytes_present).sum());
        bar.set_message(format!("{} complete", nodes.iter().filter(|node| node.is_complete()).count()));
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        // Ignored: a terminal that cannot be cleared is no reason to fail.
        let _ = self.screen.clear();
    }
}

/// A bar for one transfer of known length, or an invisible one.
pub fn bar(json: bool, prefix: &str) -> ProgressBar {
    if json || !stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::new(0).with_style(style()).with_prefix(prefix.to_owned())
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:>8} {wide_bar:.cyan/blue} {binary_bytes:>11} / {binary_total_bytes:11} {msg:20}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
}

fn describe(node: &NodeView) -> String {
    match node.state.as_str() {
        "complete" => output::seconds(node.seconds),
        "failed" => output::one_line(&node.error),
        state if !node.alive => format!("{state}, no sign of life"),
        state => state.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches an unknown placeholder in the bar's template, which would silently show another bar.
    #[test]
    fn the_style_is_valid() {
        let template = "{prefix:>8} {wide_bar:.cyan/blue} {binary_bytes:>11} / {binary_total_bytes:11} {msg:20}";
        assert!(ProgressStyle::with_template(template).is_ok());
    }
}
