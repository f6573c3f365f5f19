//! Who is hit by a disturbance, who loses a parent by it, and whether it means anything. Pure: trees in, victims out.

use super::fault::{COUNTS, FaultPlan, Kind, Target};
use crate::cluster::agent_name;
use crate::view::{ORIGIN, TreeView};

/// Who is hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// An agent; 0 is `n1`.
    Node(usize),
    /// The control plane.
    Controller,
    /// The registry.
    Origin,
}

/// The cluster at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// The trees as last heard of.
    pub trees: &'a [TreeView],
    /// Of the image, per node, in percent.
    pub held_percent: &'a [u8],
    /// Per node: whether it runs, answers and shall hold the image in the end.
    pub living: &'a [bool],
    /// Nodes from here on are kept back until they join.
    pub early: usize,
}

impl Scene<'_> {
    /// Whom `plan` would hit now; `None` while there is nobody like that.
    pub fn victims(&self, plan: &FaultPlan) -> Option<Vec<Victim>> {
        let first = self.trees.first();
        let inner = || self.alive().filter(|node| first.is_some_and(|tree| tree.is_inner(&agent_name(*node))));
        let nodes = match plan.target {
            Target::Controller => return Some(vec![Victim::Controller]),
            Target::Origin => return Some(vec![Victim::Origin]),
            Target::Count(_) => (self.early..self.living.len()).collect(),
            Target::Node(node) => vec![node],
            Target::Root => vec![node_of(&first?.edges.iter().find(|edge| edge.parent == ORIGIN)?.node)?],
            Target::Inner => vec![inner().next()?],
            Target::Leaf => vec![self.alive().min_by_key(|node| self.children(*node).count())?],
            Target::Two => self.two(&inner().collect::<Vec<_>>())?,
            Target::Half => self.alive().step_by(2).collect(),
        };
        Some(nodes.into_iter().map(Victim::Node).collect())
    }

    /// How much of the image a victim holds; of those that hold none by their nature, what the median node holds.
    pub fn held(&self, plan: &FaultPlan, victim: Victim) -> u8 {
        match victim {
            Victim::Node(node) if plan.kind != Kind::Joins => self.held_percent[node],
            _ => {
                let mut all = self.held_percent[..self.early].to_vec();
                all.sort_unstable();
                all.get(all.len() / 2).copied().unwrap_or(0)
            }
        }
    }

    /// The living nodes that have one of `victims` as a parent and are none themselves.
    pub fn orphans(&self, victims: &[Victim]) -> Vec<usize> {
        let nodes = victims.iter().filter_map(|victim| match victim {
            Victim::Node(node) => Some(*node),
            _ => None,
        });
        let mut orphans: Vec<usize> = nodes.flat_map(|node| self.children(node).collect::<Vec<_>>()).collect();
        orphans.retain(|node| self.lives(*node) && !victims.contains(&Victim::Node(*node)));
        orphans.sort_unstable();
        orphans.dedup();
        orphans
    }

    /// Empty when the disturbance counts, else why not: a victim must have held 20–80 % of the image and had a living neighbour. Of two
    /// that are hit together both must, of more at least one.
    pub fn verdict(&self, plan: &FaultPlan, victims: &[Victim]) -> &'static str {
        let all = matches!(plan.target, Target::Two);
        let check = |fits: &dyn Fn(Victim) -> bool| match all {
            true => victims.iter().all(|victim| fits(*victim)),
            false => victims.iter().any(|victim| fits(*victim)),
        };
        let middle = |victim: Victim| COUNTS.contains(&self.held(plan, victim));
        // Who joins has no neighbours yet.
        let neighbour = |victim: Victim| plan.kind == Kind::Joins || self.has_neighbour(victim, victims);
        match (check(&middle), check(&|victim| middle(victim) && neighbour(victim))) {
            (false, _) => "the victim held less than 20 % or more than 80 % of the image",
            (_, false) => "the victim had no living neighbour",
            _ => "",
        }
    }

    fn has_neighbour(&self, victim: Victim, victims: &[Victim]) -> bool {
        let Victim::Node(own) = victim else { return true };
        let own = agent_name(own);
        let lives =
            |other: &str| node_of(other).is_some_and(|node| self.lives(node) && !victims.contains(&Victim::Node(node)));
        let mut edges = self.trees.iter().flat_map(|tree| &tree.edges);
        edges.any(|edge| (edge.node == own && lives(&edge.parent)) || (edge.parent == own && lives(&edge.node)))
    }

    /// Two nodes of which neither feeds the other and each feeds a living node in the same tree: at least two nodes lose their parents at
    /// the same moment, and may turn to each other.
    fn two(&self, inner: &[usize]) -> Option<Vec<usize>> {
        let first = std::slice::from_ref(self.trees.first()?);
        let tree = Scene { trees: first, ..*self };
        let pairs = inner.iter().enumerate().flat_map(|(place, a)| inner[place + 1..].iter().map(|b| (*a, *b)));
        let apart = |(a, b): &(usize, usize)| {
            let feeds = |parent: usize, child: usize| tree.children(parent).any(|node| node == child);
            let has_orphan = |parent: usize| tree.children(parent).any(|node| tree.lives(node));
            !feeds(*a, *b) && !feeds(*b, *a) && has_orphan(*a) && has_orphan(*b)
        };
        pairs.into_iter().find(apart).map(|(a, b)| vec![a, b])
    }

    fn children(&self, node: usize) -> impl Iterator<Item = usize> {
        let name = agent_name(node);
        let edges = self.trees.iter().flat_map(|tree| &tree.edges);
        edges.filter(move |edge| edge.parent == name).filter_map(|edge| node_of(&edge.node))
    }

    /// Those that have been asked for.
    fn alive(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.early).filter(|node| self.lives(*node))
    }

    fn lives(&self, node: usize) -> bool {
        self.living.get(node).copied().unwrap_or(false)
    }
}

impl Victim {
    /// The host's name.
    pub fn name(self) -> String {
        match self {
            Self::Node(node) => agent_name(node),
            Self::Controller => "controller".into(),
            Self::Origin => ORIGIN.into(),
        }
    }
}

fn node_of(name: &str) -> Option<usize> {
    name.strip_prefix('n')?.parse::<usize>().ok()?.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::EdgeView;

    /// n1 feeds n2 and n3, n2 feeds n4 and n5, n3 feeds n6, n4 feeds n7.
    fn tree() -> TreeView {
        let edges =
            [("n1", ORIGIN), ("n2", "n1"), ("n3", "n1"), ("n4", "n2"), ("n5", "n2"), ("n6", "n3"), ("n7", "n4")];
        let edges = edges.map(|(node, parent)| EdgeView { node: node.into(), parent: parent.into() });
        TreeView { stripe: 0, edges: edges.into() }
    }

    fn nodes(victims: &[Victim]) -> Vec<String> {
        victims.iter().map(|victim| victim.name()).collect()
    }

    /// Catches a root, leaf or inner node that is none, and late hosts that are hit before they are there.
    #[test]
    fn targets_are_found_in_the_trees() {
        let trees = [tree()];
        let scene = Scene { trees: &trees, held_percent: &[50; 8], living: &[true; 8], early: 7 };
        let hit = |fault: &str| scene.victims(&fault.parse().unwrap()).map(|victims| nodes(&victims).join(" "));
        assert_eq!(hit("kill:root").unwrap(), "n1");
        assert_eq!(hit("kill:inner").unwrap(), "n2");
        assert_eq!(hit("kill:leaf").unwrap(), "n5");
        assert_eq!(hit("kill:half").unwrap(), "n1 n3 n5 n7");
        assert_eq!(hit("joins:1").unwrap(), "n8");
        assert_eq!(hit("kill:origin").unwrap(), "origin");
    }

    /// Catches "two" of which one feeds the other: then only one node loses a parent that another one could have helped.
    #[test]
    fn two_that_fall_together_leave_orphans_of_both() {
        let trees = [tree()];
        let all = Scene { trees: &trees, held_percent: &[50; 7], living: &[true; 7], early: 7 };
        let two: FaultPlan = "kill:two".parse().unwrap();
        let victims = all.victims(&two).unwrap();
        assert_eq!(nodes(&victims), ["n2", "n3"]);
        assert_eq!(all.orphans(&victims), [3, 4, 5]);
        let childless = Scene { living: &[true, true, true, true, true, false, true], ..all };
        assert_eq!(nodes(&childless.victims(&two).unwrap_or_default()), [""; 0]);
    }

    /// Catches a fault that counts although one victim was in the middle and only another one had a neighbour.
    #[test]
    fn the_same_victim_must_fit() {
        let trees = [tree()];
        let held = [50, 10, 50, 50, 50, 50, 50];
        let scene = Scene { trees: &trees, held_percent: &held, living: &[true; 7], early: 7 };
        let verdict = |fault: &str, victims: &[usize]| {
            scene.verdict(&fault.parse().unwrap(), &victims.iter().map(|node| Victim::Node(*node)).collect::<Vec<_>>())
        };
        assert_eq!(verdict("kill:n1", &[0]), "");
        assert!(verdict("kill:n2", &[1]).contains("20 %"));
        assert!(verdict("kill:two", &[1, 2]).contains("20 %"));
        assert!(verdict("kill:half", &[5, 2, 1, 0, 3, 4, 6]).contains("neighbour"));
        let lonely = Scene { living: &[false, false, true, true, true, false, true], ..scene };
        assert!(lonely.verdict(&"kill:n3".parse().unwrap(), &[Victim::Node(2)]).contains("neighbour"));
    }
}
