//! What a slow child costs its sibling: pairs of runs over a shaped link, the fast child alone and beside one at a tenth of the rate.

use anyhow::{Context, Result};

use super::Mode;
use super::measure::{self, Lab};
use super::network::Place;
use super::process::CHILD_NODES;
use super::report::{SlowChild, median};
use super::rows::Combination;
use super::sink::Character;
use super::stream::Stream;

const LINK_BITS_PER_S: u64 = 1_000_000_000;
/// About half a second on that link.
const GIB: f64 = 1.0 / 16.0;
/// Single pairs differ by some percent.
const LEAST_PAIRS: usize = 9;

/// Measures the engines of ours among `rows`, in the strictest mode that was asked for.
pub(crate) fn measure(
    lab: &mut Lab,
    rows: &[Combination],
    runs: usize,
    notes: &mut Vec<String>,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<SlowChild>> {
    if lab.network.is_loopback() {
        notes.push("--slow-child: not measured, loopback cannot be shaped; run as root".into());
        return Ok(Vec::new());
    }
    let keeps = |row: &&Combination| row.engine.is_ours() && row.mode != Mode::Forward;
    let mode = rows.iter().rev().find(keeps).map(|row| row.mode);
    let Some(mode) = mode else {
        notes.push("--slow-child: not measured, no engine of ours was asked for".into());
        return Ok(Vec::new());
    };
    lab.stream = Stream::new(GIB, lab.knobs.block_bytes)?;
    lab.network.shape(Some(LINK_BITS_PER_S)).context("cannot shape the origin's link")?;
    let ours = rows.iter().filter(|row| row.engine.is_ours() && row.mode == mode);
    let measured = ours.map(|row| pairs(lab, row, mode, runs.max(LEAST_PAIRS), progress)).collect();
    lab.network.shape(None).context("cannot unshape the origin's link")?;
    measured
}

fn pairs(lab: &Lab, row: &Combination, mode: Mode, pairs: usize, progress: &mut impl FnMut(&str)) -> Result<SlowChild> {
    let tenth = LINK_BITS_PER_S as f64 / 8.0 / 10.0;
    let fast = Character { place: Place::Left, node: CHILD_NODES[0], bytes_per_second: None };
    let slow = Character { place: Place::Right, node: CHILD_NODES[1], bytes_per_second: Some(tenth) };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        alone.push(measure::with_children(lab, row.engine, mode, &[fast])?.first_child_s);
        beside.push(measure::with_children(lab, row.engine, mode, &[fast, slow])?.first_child_s);
        progress(&format!(
            "pair {} of {pairs}: {} alone {:.3} s, beside {:.3} s",
            pair + 1,
            row.engine,
            alone[pair],
            beside[pair]
        ));
    }
    let ratios: Vec<f64> = alone.iter().zip(&beside).map(|(alone, beside)| beside / alone).collect();
    Ok(SlowChild {
        engine: row.engine,
        mode,
        link_bits_per_s: LINK_BITS_PER_S,
        pairs,
        alone_s: median(&alone),
        beside_s: median(&beside),
        ratio: median(&ratios),
    })
}
