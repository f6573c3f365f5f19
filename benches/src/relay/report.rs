//! What came out: rows with medians, lowest and highest values, ratios, and the same as text.

use serde::Serialize;

use super::measure::Sample;
use super::rows::Combination;
use super::targets::Target;
use super::{Engine, Environment, Mode, Setting};

/// Bytes of a MiB.
pub(crate) const MIB: f64 = (1u64 << 20) as f64;

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The machine.
    pub environment: Environment,
    /// By mode and engine.
    pub rows: Vec<Row>,
    /// What was to be reached, of what was measured.
    pub targets: Vec<Target>,
    /// What a slow child costs its sibling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub slow_child: Vec<SlowChild>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// One row: medians over its runs.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    /// Which relay.
    pub engine: Engine,
    /// What it did.
    pub mode: Mode,
    /// In a sweep: the knob's value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sweep: Option<Setting>,
    /// Bytes in one fragment of a socket buffer.
    pub fragment_bytes: u64,
    /// Payload from the origin until both children and the file had all of it.
    pub gib_per_s: f64,
    /// The lowest.
    pub gib_per_s_min: f64,
    /// The highest.
    pub gib_per_s_max: f64,
    /// Of the relay's process, all threads.
    pub cpu_s_per_gib: f64,
    /// The lowest.
    pub cpu_s_per_gib_min: f64,
    /// The highest.
    pub cpu_s_per_gib_max: f64,
    /// Between kernel and user memory and into the page cache; `None`: the relay does not tell.
    pub copies_per_byte: Option<f64>,
    /// The most memory of the relay's process in any run, without file cache; `None`: it is not one process.
    pub peak_anonymous_bytes: Option<u64>,
    /// How many runs.
    pub runs: usize,
    /// Against `copy-256k` in the same mode, run by run (median): throughput.
    pub speed_against_copy: Option<f64>,
    /// The same for CPU seconds.
    pub cpu_against_copy: Option<f64>,
    #[serde(skip)]
    samples: Vec<Sample>,
}

/// One engine with a fast child alone, and beside one that takes a tenth of the rate.
#[derive(Debug, Clone, Serialize)]
pub struct SlowChild {
    /// Which relay.
    pub engine: Engine,
    /// What it did.
    pub mode: Mode,
    /// The origin's link.
    pub link_bits_per_s: u64,
    /// Pairs of runs.
    pub pairs: usize,
    /// Median of the fast child's time without a sibling.
    pub alone_s: f64,
    /// The same beside the slow one.
    pub beside_s: f64,
    /// Median of the pairs' ratios.
    pub ratio: f64,
}

impl Row {
    pub(crate) fn new(
        combination: Combination,
        sweep: Option<Setting>,
        fragment_bytes: u64,
        samples: Vec<Sample>,
    ) -> Self {
        let speeds: Vec<f64> = samples.iter().map(|sample| sample.gib_per_s).collect();
        let costs: Vec<f64> = samples.iter().map(|sample| sample.cpu_s_per_gib).collect();
        let copies: Option<Vec<f64>> = samples.iter().map(|sample| sample.copies_per_byte).collect();
        let least = |values: &[f64]| values.iter().copied().fold(f64::MAX, f64::min);
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        Self {
            engine: combination.engine,
            mode: combination.mode,
            sweep,
            fragment_bytes,
            gib_per_s: median(&speeds),
            gib_per_s_min: least(&speeds),
            gib_per_s_max: most(&speeds),
            cpu_s_per_gib: median(&costs),
            cpu_s_per_gib_min: least(&costs),
            cpu_s_per_gib_max: most(&costs),
            copies_per_byte: copies.map(|copies| median(&copies)),
            peak_anonymous_bytes: samples.iter().filter_map(|sample| sample.peak_anonymous_bytes).max(),
            runs: samples.len(),
            speed_against_copy: None,
            cpu_against_copy: None,
            samples,
        }
    }
}

/// Fills in the ratios against the plain copy loop of the same mode, each from runs of the same round.
pub(crate) fn compare(rows: &mut [Row]) {
    for index in 0..rows.len() {
        let mode = rows[index].mode;
        let sweep = &rows[index].sweep;
        let plain = rows.iter().find(|row| row.engine == Engine::Copy256K && row.mode == mode && row.sweep == *sweep);
        let Some(plain) = plain else { continue };
        let speed = ratio(&rows[index], plain, |sample| sample.gib_per_s);
        let cost = ratio(&rows[index], plain, |sample| sample.cpu_s_per_gib);
        (rows[index].speed_against_copy, rows[index].cpu_against_copy) = (Some(speed), Some(cost));
    }
}

/// One row against another, run by run: the median.
pub(crate) fn ratio(ours: &Row, theirs: &Row, of: fn(&Sample) -> f64) -> f64 {
    let pairs = ours.samples.iter().zip(&theirs.samples);
    median(&pairs.map(|(ours, theirs)| of(ours) / of(theirs)).collect::<Vec<_>>())
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
    }
}

impl Report {
    /// The headings of [`Report::cells`]; those of numbers begin with `>`. A sweep's key comes first.
    pub fn columns(&self) -> Vec<&str> {
        let columns =
            ["mode", "engine", ">GiB/s (min-max)", ">CPU s/GiB (min-max)", ">copies", ">MiB", ">speed", ">CPU"];
        let key = self.rows.first().and_then(|row| row.sweep.as_ref()).map(|sweep| sweep.key.as_str());
        key.into_iter().chain(columns).collect()
    }

    /// The rows as text. `speed` and `CPU` are against copy-256k.
    pub fn cells(&self) -> Vec<Vec<String>> {
        let ratio = |value: Option<f64>| value.map_or_else(|| "-".into(), |value| format!("{value:.2}x"));
        let cells = |row: &Row| {
            let figures = [
                row.mode.to_string(),
                row.engine.to_string(),
                format!("{:.2} ({:.2}-{:.2})", row.gib_per_s, row.gib_per_s_min, row.gib_per_s_max),
                format!("{:.3} ({:.3}-{:.3})", row.cpu_s_per_gib, row.cpu_s_per_gib_min, row.cpu_s_per_gib_max),
                row.copies_per_byte.map_or_else(|| "-".into(), |copies| format!("{copies:.2}")),
                row.peak_anonymous_bytes.map_or_else(|| "-".into(), |bytes| format!("{:.0}", bytes as f64 / MIB)),
                ratio(row.speed_against_copy),
                ratio(row.cpu_against_copy),
            ];
            row.sweep.iter().map(|sweep| sweep.value.clone()).chain(figures).collect()
        };
        self.rows.iter().map(cells).collect()
    }

    /// What has to stand above and below the table.
    pub fn remarks(&self) -> (String, Vec<String>) {
        let Environment { kernel, processor, cores, network, gib, runs, load, .. } = &self.environment;
        let sizes = || self.rows.iter().map(|row| row.fragment_bytes);
        let fragments = match (sizes().min().unwrap_or(0), sizes().max().unwrap_or(0)) {
            (least, most) if least == most => least.to_string(),
            (least, most) => format!("{least} to {most}"),
        };
        let above = format!(
            "{network}; fragments of {fragments} bytes; {gib} GiB x {runs}; Linux {kernel}, {cores} cores of {processor}, load {load}"
        );
        let slow = self.slow_child.iter().map(|slow| {
            format!(
                "{} {}: a fast child takes {:.3} s alone, {:.3} s beside one at a tenth of the rate: {:.3}x over {} pairs",
                slow.engine, slow.mode, slow.alone_s, slow.beside_s, slow.ratio, slow.pairs
            )
        });
        (above, slow.chain(self.notes.iter().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(engine: Engine, mode: Mode, speeds: &[f64]) -> Row {
        let sample = |speed: &f64| Sample {
            gib_per_s: *speed,
            cpu_s_per_gib: 1.0 / speed,
            copies_per_byte: Some(1.0),
            peak_anonymous_bytes: None,
            first_child_s: 1.0,
        };
        Row::new(Combination { engine, mode }, None, 4096, speeds.iter().map(sample).collect())
    }

    /// Catches a ratio of medians, or one against another mode: machines drift, so runs of one round are compared.
    #[test]
    fn ratios_are_of_the_same_round_and_mode() {
        let mut rows = vec![
            row(Engine::Copy256K, Mode::Forward, &[9.0, 9.0, 9.0]),
            row(Engine::Copy256K, Mode::Keep, &[1.0, 2.0, 4.0]),
            row(Engine::Splice, Mode::Keep, &[2.0, 4.0, 9.0]),
            row(Engine::NginxCache, Mode::KeepXxh3, &[1.0]),
        ];
        compare(&mut rows);
        assert_eq!((rows[2].gib_per_s, rows[2].gib_per_s_min, rows[2].gib_per_s_max), (4.0, 2.0, 9.0));
        assert_eq!((rows[2].speed_against_copy, rows[2].cpu_against_copy), (Some(2.0), Some(0.5)));
        assert_eq!(rows[3].speed_against_copy, None);
    }

    /// Catches a median that takes one of two.
    #[test]
    fn the_median_of_an_even_number() {
        assert_eq!((median(&[3.0, 1.0]), median(&[5.0, 1.0, 2.0])), (2.0, 2.0));
    }
}
