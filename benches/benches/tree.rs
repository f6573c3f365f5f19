//! Function Trees: a join and a leave among a million members, and a join beside one that looks for its place by walking the tree.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use faasnet_tree::{FunctionTrees, Policy};

const POLICIES: [Policy; 3] = [Policy::Complete, Policy::Twin, Policy::Avl];

fn trees(policy: Policy, nodes: u64) -> FunctionTrees<u64> {
    let mut trees = FunctionTrees::new(policy);
    for node in 0..nodes {
        // Ignored: every node is new.
        let _ = trees.insert(node);
    }
    trees
}

/// A member that was chosen at random leaves, and a new one joins.
fn churn(criterion: &mut Criterion) {
    const NODES: u64 = 1_000_000;
    let mut group = criterion.benchmark_group("insert + remove among 1,000,000");
    for policy in POLICIES {
        let (mut trees, mut next, mut state) = (trees(policy, NODES), NODES, 1u64);
        let mut members: Vec<u64> = (0..NODES).collect();
        group.bench_function(policy.to_string(), |bench| {
            bench.iter(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let place = ((state >> 33) % NODES) as usize;
                next += 1;
                let left = trees.remove(members[place]);
                let joined = trees.insert(next);
                members[place] = next;
                black_box((left, joined))
            });
        });
    }
    group.finish();
}

/// The published prototype's way: the first node with a free side, found by walking from the root.
struct Walked {
    children: Vec<[Option<u32>; 2]>,
}

impl Walked {
    fn with(nodes: u32) -> Self {
        // The shape that its inserts would make, made at once.
        let child = |place: u32| (place < nodes).then_some(place);
        Self { children: (0..nodes).map(|place| [child(2 * place + 1), child(2 * place + 2)]).collect() }
    }

    fn insert(&mut self) {
        let new = self.children.len() as u32;
        let mut queue = VecDeque::from([0u32]);
        while let Some(place) = queue.pop_front() {
            let children = &mut self.children[place as usize];
            if let Some(free) = children.iter_mut().find(|child| child.is_none()) {
                *free = Some(new);
                break;
            }
            queue.extend(children.iter().flatten());
        }
        self.children.push([None, None]);
    }
}

fn insert(criterion: &mut Criterion) {
    const NODES: u32 = 100_000;
    const BATCH: usize = 1_000;
    let mut group = criterion.benchmark_group("insert among 100,000");
    for policy in POLICIES {
        let (mut trees, mut next) = (trees(policy, NODES.into()), u64::from(NODES));
        group.bench_function(policy.to_string(), |bench| {
            bench.iter_custom(|inserts| {
                let mut spent = Duration::ZERO;
                for first in (0..inserts).step_by(BATCH) {
                    let joining = next..next + (inserts - first).min(BATCH as u64);
                    let start = Instant::now();
                    for node in joining.clone() {
                        black_box(trees.insert(node).is_ok());
                    }
                    spent += start.elapsed();
                    next = joining.end;
                    // Back to the size that is measured.
                    joining.for_each(|node| drop(trees.remove(node)));
                }
                spent
            });
        });
    }
    let mut walked = Walked::with(NODES);
    group.sample_size(20);
    group.bench_function("walk from the root (baseline)", |bench| bench.iter(|| walked.insert()));
    group.finish();
}

criterion_group!(benches, churn, insert);
criterion_main!(benches);
