//! The trees of one function: the public value, in front of the policies.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use crate::arrangement::Arrangement;
use crate::avl::Avl;
use crate::complete::Complete;
use crate::index::Index;
use crate::plan::{ChangeLog, Edge, Plan};
use crate::policy::Policy;
use crate::row::Row;
use crate::twin::Twin;

/// Why a change or a stored order is refused; nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// The node is in the trees already.
    #[error("the node is a member of the function's trees already")]
    AlreadyMember,
    /// The node is not in the trees.
    #[error("the node is not a member of the function's trees")]
    NotMember,
    /// A stored order that no sequence of changes can have made.
    #[error("the stored tree order is damaged: {0}")]
    BadOrder(String),
}

/// The trees as plain lists: what has to be kept to restore them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order<K> {
    /// Per stripe the members in the policy's order; in policy `avl` three lists: the members in pre-order, those that have a left
    /// child, those that have a right one.
    pub stripes: Vec<Vec<K>>,
    /// How many nodes lead tree 0 in policy `twin`; 0 otherwise.
    pub reds: u64,
}

/// One function's trees. Every change costs O(1), in policy `avl` O(log n), and answers with the edges that it changed.
#[derive(Debug, Clone)]
pub struct FunctionTrees<K> {
    shape: Shape<K>,
    log: ChangeLog<K>,
}

#[derive(Debug, Clone)]
enum Shape<K> {
    Complete(Complete<K>),
    Avl(Avl<K>),
    Twin(Twin<K>),
}

impl<K: Copy + Ord + Hash + Debug> FunctionTrees<K> {
    /// Empty trees.
    pub fn new(policy: Policy) -> Self {
        let shape = match policy {
            Policy::Complete => Shape::Complete(Complete::new(Row::new(0), Index::new())),
            Policy::Avl => Shape::Avl(Avl::new()),
            // Zero reds of zero nodes always fit.
            Policy::Twin => match Twin::new([Row::new(0), Row::new(1)], Index::new(), 0) {
                Some(twin) => Shape::Twin(twin),
                None => unreachable!("empty twin trees"),
            },
        };
        Self { shape, log: ChangeLog::new() }
    }

    /// Trees as [`FunctionTrees::to_order`] described them; refuses what breaks an invariant.
    pub fn from_order(policy: Policy, order: Order<K>) -> Result<Self, TreeError> {
        let bad = |what: &str| TreeError::BadOrder(what.into());
        if policy == Policy::Avl {
            let [preorder, left, right]: [Vec<K>; 3] =
                order.stripes.try_into().map_err(|_| bad("policy avl is stored as three lists"))?;
            let avl = Avl::from_lists(preorder, &left, &right).ok_or_else(|| bad("the lists are not a tree"))?;
            return Self::checked(Shape::Avl(avl));
        }
        let reds = usize::try_from(order.reds).map_err(|_| bad("too many reds"))?;
        let (mut rows, mut index) = (Vec::new(), Index::new());
        for (stripe, places) in (0u8..).zip(order.stripes) {
            rows.push(Row::from_places(stripe, places, &mut index).ok_or_else(|| bad("a node is listed twice"))?);
        }
        let shape = match (policy, rows.pop(), rows.pop()) {
            (Policy::Complete, Some(row), None) => Shape::Complete(Complete::new(row, index)),
            (Policy::Twin, Some(second), Some(first)) => {
                Shape::Twin(Twin::new([first, second], index, reds).ok_or_else(|| bad("more reds than nodes"))?)
            }
            _ => return Err(bad("wrong number of stripes")),
        };
        Self::checked(shape)
    }

    fn checked(shape: Shape<K>) -> Result<Self, TreeError> {
        let trees = Self { shape, log: ChangeLog::new() };
        trees.check_invariants().map_err(TreeError::BadOrder)?;
        Ok(trees)
    }

    /// What [`FunctionTrees::from_order`] needs.
    pub fn to_order(&self) -> Order<K> {
        let reds = match &self.shape {
            Shape::Avl(avl) => return Order { stripes: avl.to_lists().into(), reds: 0 },
            Shape::Complete(_) => 0,
            Shape::Twin(twin) => twin.reds() as u64,
        };
        let stripes = (0..self.stripes()).map(|stripe| self.arrangement().order(stripe).collect()).collect();
        Order { stripes, reds }
    }

    /// The policy.
    pub fn policy(&self) -> Policy {
        match self.shape {
            Shape::Complete(_) => Policy::Complete,
            Shape::Avl(_) => Policy::Avl,
            Shape::Twin(_) => Policy::Twin,
        }
    }

    /// The number of trees.
    pub fn stripes(&self) -> u8 {
        self.policy().stripes()
    }

    /// The number of members.
    pub fn len(&self) -> usize {
        self.arrangement().len()
    }

    /// Whether nobody is a member.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `node` is a member.
    pub fn contains(&self, node: &K) -> bool {
        self.arrangement().contains(node)
    }

    /// The members, in the order of tree 0 (in policy `avl` in no order).
    pub fn members(&self) -> impl DoubleEndedIterator<Item = K> + '_ {
        self.arrangement().order(0)
    }

    /// Makes `node` a member of every tree.
    pub fn insert(&mut self, node: K) -> Result<Plan<K>, TreeError> {
        self.change(|shape, log| shape.insert(node, log)).ok_or(TreeError::AlreadyMember)
    }

    /// Takes `node` out of every tree. When it was a root, its heir takes its place if the policy's invariants allow that.
    pub fn remove(&mut self, node: K) -> Result<Plan<K>, TreeError> {
        self.change(|shape, log| shape.remove(node, log)).ok_or(TreeError::NotMember)
    }

    /// Moves a straggler where it holds up as few as possible, in exchange with a node that is not slow: to a leaf's place in a single
    /// tree; in `twin`, where nearly everybody is an inner node once, to the place of the one node that is a leaf twice if there is one, else
    /// to the lowest place of its colour, which has one leaf below it. A later change may lift it again, so whoever knows the stragglers asks again then. A root is followed by its heir.
    pub fn demote(&mut self, node: K, is_slow: impl Fn(&K) -> bool) -> Result<Plan<K>, TreeError> {
        if !self.contains(&node) {
            return Err(TreeError::NotMember);
        }
        let change = self.change(|shape, log| {
            shape.demote(&node, &|other| *other == node || is_slow(other), log);
            true
        });
        change.ok_or(TreeError::NotMember)
    }

    /// Exchanges the places of two members: a node with data and one without, where the one without would lead. In `twin` nodes of the same
    /// colour change places in their own tree only, others in both.
    pub fn exchange(&mut self, one: K, other: K) -> Result<Plan<K>, TreeError> {
        if !self.contains(&one) || !self.contains(&other) {
            return Err(TreeError::NotMember);
        }
        let change = self.change(|shape, log| {
            shape.exchange(&one, &other, log);
            true
        });
        change.ok_or(TreeError::NotMember)
    }

    /// The member whose removal moves the fewest: a leaf of all trees if there is one; `None` when nobody is a member.
    pub fn expendable(&self) -> Option<K> {
        self.arrangement().expendable()
    }

    /// The root of a tree; `None` when it is empty.
    pub fn root(&self, stripe: u8) -> Option<K> {
        self.arrangement().root(stripe)
    }

    /// The node that replaces the root: its first child; `None` with fewer than two members.
    pub fn heir(&self, stripe: u8) -> Option<K> {
        self.children(stripe, &self.root(stripe)?).next()
    }

    /// The parent of a member; `None` for the root and for anybody who is not a member.
    pub fn parent(&self, stripe: u8, node: &K) -> Option<K> {
        self.arrangement().parent(stripe, node).flatten()
    }

    /// The children of a member, at most two.
    pub fn children(&self, stripe: u8, node: &K) -> impl Iterator<Item = K> + use<K> {
        self.arrangement().children(stripe, node).into_iter().flatten()
    }

    /// The members from the root to `node`, both included; empty when `node` is not a member.
    pub fn path(&self, stripe: u8, node: &K) -> Vec<K> {
        let start = self.arrangement().parent(stripe, node).map(|_| *node);
        let mut path: Vec<K> = std::iter::successors(start, |node| self.parent(stripe, node)).collect();
        path.reverse();
        path
    }

    /// Edges between the root and `node`; `None` when `node` is not a member.
    pub fn depth(&self, stripe: u8, node: &K) -> Option<usize> {
        self.path(stripe, node).len().checked_sub(1)
    }

    /// Every edge of one tree, the root's (without a parent) first.
    pub fn edges(&self, stripe: u8) -> impl Iterator<Item = Edge<K>> + '_ {
        let root = self.root(stripe);
        let others = self.arrangement().order(stripe).filter(move |node| Some(*node) != root);
        root.into_iter().chain(others).map(move |node| Edge { stripe, node, parent: self.parent(stripe, &node) })
    }

    /// Checks, in O(n), everything that must hold after every change. An `Err` is a defect of this crate or a damaged stored order.
    pub fn check_invariants(&self) -> Result<(), String> {
        self.arrangement().check()?;
        let mut inner = HashSet::new();
        for stripe in 0..self.stripes() {
            for node in self.arrangement().order(stripe) {
                if self.children(stripe, &node).next().is_some() && !inner.insert(node) {
                    return Err(format!("{node:?} is an inner node of both trees"));
                }
            }
        }
        Ok(())
    }

    fn arrangement(&self) -> &dyn Arrangement<K> {
        match &self.shape {
            Shape::Complete(complete) => complete,
            Shape::Avl(avl) => avl,
            Shape::Twin(twin) => twin,
        }
    }

    /// Carries out a change, unless it answers that it is none, and works out the difference.
    fn change(&mut self, act: impl FnOnce(&mut dyn Arrangement<K>, &mut ChangeLog<K>) -> bool) -> Option<Plan<K>> {
        let shape: &mut dyn Arrangement<K> = match &mut self.shape {
            Shape::Complete(complete) => complete,
            Shape::Avl(avl) => avl,
            Shape::Twin(twin) => twin,
        };
        act(shape, &mut self.log).then(|| self.log.finish(|stripe, place| shape.stand(stripe, place)))
    }
}
