//! Draws a tree with box characters. Pure: edges and labels in, lines out.
//!
//! The edges come from a snapshot that may be taken in the middle of a change, so a node whose parent is not in the snapshot, and
//! even a cycle, must be drawn and not lost.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// The lines of one tree: `top` first, then every node below its parent in the order of `edges` (`None`: below `top`).
pub fn draw<Id: Copy + Eq + Hash>(top: &str, edges: &[(Id, Option<Id>)], label: impl Fn(Id) -> String) -> Vec<String> {
    let known: HashSet<Id> = edges.iter().map(|(node, _)| *node).collect();
    let mut children: HashMap<Option<Id>, Vec<Id>> = HashMap::new();
    let mut lost = Vec::new();
    for &(node, parent) in edges {
        match parent {
            Some(parent) if !known.contains(&parent) => lost.push(node),
            parent => children.entry(parent).or_default().push(node),
        }
    }
    let mut drawing = Drawing { children, drawn: HashSet::new(), lines: vec![top.to_owned()], label };
    let roots = drawing.children.get(&None).cloned().unwrap_or_default();
    drawing.forest(roots);
    // What hangs below a cycle is reached from none of the roots.
    lost.extend(edges.iter().map(|(node, _)| *node));
    for node in lost {
        if !drawing.drawn.contains(&node) {
            drawing.lines.push("(parent unknown)".to_owned());
            drawing.forest(vec![node]);
        }
    }
    drawing.lines
}

struct Drawing<Id, Label> {
    children: HashMap<Option<Id>, Vec<Id>>,
    drawn: HashSet<Id>,
    lines: Vec<String>,
    label: Label,
}

impl<Id: Copy + Eq + Hash, Label: Fn(Id) -> String> Drawing<Id, Label> {
    /// Draws the trees below one line. A stack of our own: a degenerate tree may be deeper than the thread's.
    fn forest(&mut self, roots: Vec<Id>) {
        let mut open = vec![(String::new(), roots.into_iter())];
        while let Some((prefix, nodes)) = open.last_mut() {
            let Some(node) = nodes.next() else {
                open.pop();
                continue;
            };
            let (branch, indent) = if nodes.len() == 0 { ("└── ", "    ") } else { ("├── ", "│   ") };
            let (line, below) = (format!("{prefix}{branch}"), format!("{prefix}{indent}"));
            self.lines.push(format!("{line}{}", (self.label)(node)));
            if self.drawn.insert(node) {
                let next = self.children.get(&Some(node)).cloned().unwrap_or_default();
                open.push((below, next.into_iter()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(edges: &[(u32, Option<u32>)]) -> String {
        draw("origin", edges, |node| format!("n{node}")).join("\n")
    }

    /// Catches wrong box characters: a vertical line must go on exactly while younger siblings follow.
    #[test]
    fn seven_nodes() {
        let edges = [(1, None), (2, Some(1)), (3, Some(1)), (4, Some(2)), (5, Some(2)), (6, Some(3))];
        let expected = "origin\n└── n1\n    ├── n2\n    │   ├── n4\n    │   └── n5\n    └── n3\n        └── n6";
        assert_eq!(lines(&edges), expected);
    }

    /// Catches a node that disappears from the drawing (or an endless loop) when the snapshot is torn.
    #[test]
    fn orphans_and_cycles_are_shown() {
        let drawing = lines(&[(1, None), (2, Some(9)), (3, Some(4)), (4, Some(3))]);
        for node in 1..=4 {
            assert!(drawing.contains(&format!("n{node}")), "{drawing}");
        }
        assert!(drawing.lines().count() < 12, "{drawing}");
    }

    /// Catches a stack overflow on a chain of nodes.
    #[test]
    fn a_deep_chain_is_drawn() {
        let edges: Vec<_> = (0..3_000u32).map(|n| (n, n.checked_sub(1))).collect();
        assert_eq!(draw("origin", &edges, |n| n.to_string()).len(), 3_001);
    }
}
