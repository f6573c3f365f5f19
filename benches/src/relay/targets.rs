//! What our rows are to reach, as ratios against other rows of the same run, beside what they reached.
//!
//! Ratios, because absolute figures belong to one machine. Each is the median over the rounds.

use serde::Serialize;

use super::measure::Sample;
use super::report::{Row, ratio};
use super::{Engine, Mode};

/// One target.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// Our row.
    pub engine: Engine,
    /// Its mode.
    pub mode: Mode,
    /// The row that it is measured against.
    pub against: Engine,
    /// The mode of that row.
    pub against_mode: Mode,
    /// What is compared.
    pub quantity: Quantity,
    /// The least that is good enough.
    pub must: f64,
    /// What we want.
    pub aim: f64,
    /// What this run gave.
    pub reached: f64,
    /// Whether that is good enough.
    pub met: bool,
}

/// What a target is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Quantity {
    /// GiB/s: more is better.
    Throughput,
    /// CPU seconds per GiB: less is better.
    Cpu,
}

/// Mode of our row, mode and engine of the other, quantity, must, aim.
type Wanted = (Mode, (Engine, Mode), Quantity, f64, f64);

/// The targets of the splicing worker.
const WANTED: [Wanted; 7] = [
    (Mode::Forward, (Engine::Copy256K, Mode::Forward), Quantity::Throughput, 1.5, 1.8),
    (Mode::Forward, (Engine::Copy256K, Mode::Forward), Quantity::Cpu, 0.65, 0.55),
    (Mode::KeepXxh3, (Engine::Copy256K, Mode::KeepXxh3), Quantity::Throughput, 1.35, 1.7),
    (Mode::KeepXxh3, (Engine::Copy256K, Mode::KeepXxh3), Quantity::Cpu, 0.72, 0.58),
    (Mode::KeepXxh3, (Engine::NginxCache, Mode::Keep), Quantity::Throughput, 3.0, 4.0),
    (Mode::KeepBlake3, (Engine::Copy256K, Mode::KeepBlake3), Quantity::Throughput, 1.2, 1.35),
    (Mode::KeepBlake3, (Engine::Copy256K, Mode::KeepBlake3), Quantity::Cpu, 0.72, 0.58),
];

impl Quantity {
    fn of(self) -> fn(&Sample) -> f64 {
        match self {
            Self::Throughput => |sample| sample.gib_per_s,
            Self::Cpu => |sample| sample.cpu_s_per_gib,
        }
    }

    fn is_met(self, must: f64, reached: f64) -> bool {
        match self {
            Self::Throughput => reached >= must,
            Self::Cpu => reached <= must,
        }
    }
}

/// The targets for which both rows were measured; of a sweep there are none.
pub(crate) fn judge(rows: &[Row]) -> Vec<Target> {
    let rows = || rows.iter().filter(|row| row.sweep.is_none());
    let find = |engine, mode| rows().find(|row| row.engine == engine && row.mode == mode);
    let judged = WANTED.iter().filter_map(|&(mode, (against, against_mode), quantity, must, aim)| {
        let (ours, theirs) = (find(Engine::Splice, mode)?, find(against, against_mode)?);
        let reached = ratio(ours, theirs, quantity.of());
        let met = quantity.is_met(must, reached);
        Some(Target { engine: Engine::Splice, mode, against, against_mode, quantity, must, aim, reached, met })
    });
    judged.collect()
}

impl Target {
    /// The headings of [`Target::cells`]; those of numbers begin with `>`.
    pub const COLUMNS: [&'static str; 6] = ["target of splice", "against", ">must", ">aim", ">reached", "met"];

    /// One row of the table.
    pub fn cells(&self) -> Vec<String> {
        let (quantity, sign) = match self.quantity {
            Quantity::Throughput => ("throughput", "≥"),
            Quantity::Cpu => ("CPU per GiB", "≤"),
        };
        vec![
            format!("{}: {quantity}", self.mode),
            format!("{}, {}", self.against, self.against_mode),
            format!("{sign} {:.2}x", self.must),
            format!("{sign} {:.2}x", self.aim),
            format!("{:.2}x", self.reached),
            if self.met { "yes" } else { "NO" }.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Combination;
    use super::*;

    fn row(engine: Engine, mode: Mode, gib_per_s: f64, cpu_s_per_gib: f64) -> Row {
        let sample =
            Sample { gib_per_s, cpu_s_per_gib, copies_per_byte: None, peak_anonymous_bytes: None, first_child_s: 1.0 };
        Row::new(Combination { engine, mode }, None, 4096, vec![sample])
    }

    /// Catches a target that is compared with the wrong row, or passes the wrong way round.
    #[test]
    fn more_speed_and_less_time_pass() {
        let rows = [
            row(Engine::Copy256K, Mode::KeepXxh3, 1.0, 1.0),
            row(Engine::Splice, Mode::KeepXxh3, 1.5, 0.8),
            row(Engine::NginxCache, Mode::Keep, 0.3, 1.0),
            row(Engine::Splice, Mode::Forward, 9.0, 0.1),
        ];
        let targets = judge(&rows);
        let verdicts: Vec<_> = targets.iter().map(|target| (target.against, target.quantity, target.met)).collect();
        let expected = [
            (Engine::Copy256K, Quantity::Throughput, true),
            (Engine::Copy256K, Quantity::Cpu, false),
            (Engine::NginxCache, Quantity::Throughput, true),
        ];
        assert_eq!(verdicts, expected);
        assert_eq!(targets[1].reached, 0.8);
    }
}
