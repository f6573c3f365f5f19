//! What our rows are to reach, beside what they reached: as ratios against other rows of the same run, and some figures that any machine
//! has to reach.
//!
//! Ratios, because absolute speeds belong to one machine. Each is the median over the rounds. Only what was measured is judged.

use serde::Serialize;

use super::measure::Sample;
use super::report::{MIB, Row, SlowChild, ratio};
use super::{Engine, Mode};

/// One target.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// Our row.
    pub engine: Engine,
    /// Its mode.
    pub mode: Mode,
    /// The row that it is measured against; `None`: a figure that stands for itself.
    pub against: Option<Engine>,
    /// The mode of that row.
    pub against_mode: Option<Mode>,
    /// What is compared.
    pub quantity: Quantity,
    /// The least that is good enough.
    pub must: f64,
    /// What we want, where that is more.
    pub aim: Option<f64>,
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
    /// A fast child's time beside a slow one, by its time alone.
    SlowChild,
    /// The most memory without file cache, in MiB, at full rate.
    PeakMib,
}

/// Mode of our row, mode and engine of the other, quantity, must, aim.
type Wanted = (Mode, (Engine, Mode), Quantity, f64, f64);

/// What runs by default, and what it does where fragments are large.
const JUDGED: [Engine; 2] = [Engine::Splice, Engine::Auto];
/// With ordinary fragments, of each of [`JUDGED`].
const WANTED: [Wanted; 7] = [
    (Mode::Forward, (Engine::Copy256K, Mode::Forward), Quantity::Throughput, 1.5, 1.8),
    (Mode::Forward, (Engine::Copy256K, Mode::Forward), Quantity::Cpu, 0.65, 0.55),
    (Mode::KeepXxh3, (Engine::Copy256K, Mode::KeepXxh3), Quantity::Throughput, 1.35, 1.7),
    (Mode::KeepXxh3, (Engine::Copy256K, Mode::KeepXxh3), Quantity::Cpu, 0.72, 0.58),
    (Mode::KeepXxh3, (Engine::NginxCache, Mode::Keep), Quantity::Throughput, 3.0, 4.0),
    (Mode::KeepBlake3, (Engine::Copy256K, Mode::KeepBlake3), Quantity::Throughput, 1.2, 1.35),
    (Mode::KeepBlake3, (Engine::Copy256K, Mode::KeepBlake3), Quantity::Cpu, 0.72, 0.58),
];
/// Fragments below this are those of single packets: there `auto` must do as well as the mover that copies.
const SMALL_FRAGMENT_BYTES: u64 = 2 << 10;
const LEAST_OF_COPY: f64 = 0.97;
const MOST_BESIDE_SLOW: f64 = 1.02;
const MOST_PEAK_MIB: f64 = 128.0;

impl Quantity {
    fn of(self) -> fn(&Sample) -> f64 {
        match self {
            Self::Cpu => |sample| sample.cpu_s_per_gib,
            _ => |sample| sample.gib_per_s,
        }
    }

    fn is_met(self, must: f64, reached: f64) -> bool {
        match self {
            Self::Throughput => reached >= must,
            Self::Cpu | Self::SlowChild => reached <= must,
            Self::PeakMib => reached < must,
        }
    }
}

/// The targets for which everything was measured; of a sweep there are none.
pub(crate) fn judge(rows: &[Row], slow_child: &[SlowChild]) -> Vec<Target> {
    let rows: Vec<&Row> = rows.iter().filter(|row| row.sweep.is_none()).collect();
    let (small, large): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.fragment_bytes < SMALL_FRAGMENT_BYTES);
    let mut targets = beside_others(&large);
    targets.extend(beside_copy(&small));
    for engine in JUDGED {
        let slow = slow_child.iter().filter(|slow| slow.engine == engine);
        targets.extend(
            slow.map(|slow| Target::alone(engine, slow.mode, Quantity::SlowChild, MOST_BESIDE_SLOW, slow.ratio)),
        );
        let peaks = rows.iter().filter(|row| row.engine == engine);
        let most = peaks.filter_map(|row| Some((row.peak_anonymous_bytes?, row.mode))).max_by_key(|(bytes, _)| *bytes);
        targets.extend(
            most.map(|(bytes, mode)| Target::alone(engine, mode, Quantity::PeakMib, MOST_PEAK_MIB, bytes as f64 / MIB)),
        );
    }
    targets
}

/// Says for which rows there are no targets but [`LEAST_OF_COPY`].
pub(crate) fn note(rows: &[Row]) -> Option<String> {
    let small: Vec<&Row> = rows.iter().filter(|row| row.fragment_bytes < SMALL_FRAGMENT_BYTES).collect();
    let least = small.iter().map(|row| row.fragment_bytes).min()?;
    let (count, all) = (small.len(), rows.len());
    Some(format!(
        "{count} of {all} rows got their bytes in single packets ({least} B a fragment), where little can be won: of these only `auto` is judged, against `copy`"
    ))
}

fn find<'a>(rows: &[&'a Row], engine: Engine, mode: Mode) -> Option<&'a Row> {
    rows.iter().copied().find(|row| row.engine == engine && row.mode == mode)
}

fn beside_others(rows: &[&Row]) -> Vec<Target> {
    let all = JUDGED.into_iter().flat_map(|engine| WANTED.map(|wanted| (engine, wanted)));
    let judged = all.filter_map(|(engine, (mode, (against, against_mode), quantity, must, aim))| {
        let (ours, theirs) = (find(rows, engine, mode)?, find(rows, against, against_mode)?);
        Some(Target { aim: Some(aim), ..Target::ratio(ours, theirs, quantity, must) })
    });
    judged.collect()
}

fn beside_copy(rows: &[&Row]) -> Vec<Target> {
    let judged = Mode::ALL.into_iter().filter_map(|mode| {
        let (ours, theirs) = (find(rows, Engine::Auto, mode)?, find(rows, Engine::Copy, mode)?);
        Some(Target::ratio(ours, theirs, Quantity::Throughput, LEAST_OF_COPY))
    });
    judged.collect()
}

impl Target {
    /// The headings of [`Target::cells`]; those of numbers begin with `>`.
    pub const COLUMNS: [&'static str; 7] = ["target of", "in", "against", ">must", ">aim", ">reached", "met"];

    fn alone(engine: Engine, mode: Mode, quantity: Quantity, must: f64, reached: f64) -> Self {
        let met = quantity.is_met(must, reached);
        Self { engine, mode, against: None, against_mode: None, quantity, must, aim: None, reached, met }
    }

    fn ratio(ours: &Row, theirs: &Row, quantity: Quantity, must: f64) -> Self {
        let (against, against_mode) = (Some(theirs.engine), Some(theirs.mode));
        let target = Self::alone(ours.engine, ours.mode, quantity, must, ratio(ours, theirs, quantity.of()));
        Self { against, against_mode, ..target }
    }

    /// One row of the table.
    pub fn cells(&self) -> Vec<String> {
        let (what, sign) = match self.quantity {
            Quantity::Throughput => ("throughput", "≥"),
            Quantity::Cpu => ("CPU per GiB", "≤"),
            Quantity::SlowChild => ("fast child beside a slow one", "≤"),
            Quantity::PeakMib => ("MiB of memory", "<"),
        };
        let figure = |value: f64| match self.quantity {
            Quantity::PeakMib => format!("{value:.0}"),
            Quantity::SlowChild => format!("{value:.3}x"),
            _ => format!("{value:.2}x"),
        };
        let against = match (self.against, self.against_mode) {
            (Some(engine), Some(mode)) => format!("{engine}, {mode}"),
            _ if self.quantity == Quantity::SlowChild => "alone".into(),
            _ => "-".into(),
        };
        vec![
            self.engine.to_string(),
            format!("{}: {what}", self.mode),
            against,
            format!("{sign} {}", figure(self.must)),
            self.aim.map_or_else(|| "-".into(), |aim| format!("{sign} {}", figure(aim))),
            figure(self.reached),
            if self.met { "yes" } else { "NO" }.into(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::rows::Combination;
    use super::*;

    fn row(engine: Engine, mode: Mode, gib_per_s: f64, cpu_s_per_gib: f64) -> Row {
        row_of(4096, engine, mode, gib_per_s, cpu_s_per_gib, None)
    }

    fn row_of(fragment: u64, engine: Engine, mode: Mode, speed: f64, cost: f64, peak: Option<u64>) -> Row {
        let sample = Sample {
            gib_per_s: speed,
            cpu_s_per_gib: cost,
            copies_per_byte: None,
            peak_anonymous_bytes: peak,
            first_child_s: 1.0,
        };
        Row::new(Combination { engine, mode }, None, fragment, vec![sample])
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
        let targets = judge(&rows, &[]);
        let verdicts: Vec<_> = targets.iter().map(|target| (target.against, target.quantity, target.met)).collect();
        let expected = [
            (Some(Engine::Copy256K), Quantity::Throughput, true),
            (Some(Engine::Copy256K), Quantity::Cpu, false),
            (Some(Engine::NginxCache), Quantity::Throughput, true),
        ];
        assert_eq!(verdicts, expected);
        assert_eq!(targets[1].reached, 0.8);
    }

    /// Catches a default that nobody judges, and a figure that was measured and gets no verdict.
    #[test]
    fn what_runs_by_default_is_judged_too() {
        let rows = [
            row(Engine::Copy256K, Mode::Forward, 1.0, 1.0),
            row_of(4096, Engine::Auto, Mode::Forward, 1.4, 0.6, Some(200 << 20)),
        ];
        let slow = SlowChild {
            engine: Engine::Auto,
            mode: Mode::Keep,
            link_bits_per_s: 1,
            pairs: 9,
            alone_s: 1.0,
            beside_s: 1.01,
            ratio: 1.01,
        };
        let targets = judge(&rows, &[slow]);
        let verdicts: Vec<_> = targets.iter().map(|target| (target.engine, target.quantity, target.met)).collect();
        let expected = [
            (Quantity::Throughput, false),
            (Quantity::Cpu, true),
            (Quantity::SlowChild, true),
            (Quantity::PeakMib, false),
        ];
        assert_eq!(verdicts, expected.map(|(quantity, met)| (Engine::Auto, quantity, met)));
        assert!(targets.iter().all(|target| target.cells().len() == Target::COLUMNS.len()));
    }

    /// Catches single packets that are judged by what only large fragments allow, or not at all.
    #[test]
    fn single_packets_have_a_target_of_their_own() {
        let of = |engine, speed| row_of(1448, engine, Mode::Forward, speed, 1.0, None);
        let targets = judge(&[of(Engine::Copy256K, 1.0), of(Engine::Copy, 1.0), of(Engine::Auto, 0.96)], &[]);
        let verdicts: Vec<_> = targets.iter().map(|target| (target.against, target.must, target.met)).collect();
        assert_eq!(verdicts, [(Some(Engine::Copy), LEAST_OF_COPY, false)]);
        // One such row takes nothing away from the others.
        let mut rows = [
            of(Engine::Tokio, 1.0),
            row(Engine::Copy256K, Mode::Forward, 1.0, 1.0),
            row(Engine::Auto, Mode::Forward, 1.4, 1.0),
        ];
        let verdicts = |rows: &[Row]| judge(rows, &[]).iter().map(|target| target.met).collect::<Vec<_>>();
        assert_eq!(verdicts(&rows), [false, false]);
        assert!(note(&rows).is_some_and(|note| note.starts_with("1 of 3 rows")));
        rows[0] = row(Engine::Tokio, Mode::Forward, 1.0, 1.0);
        assert_eq!((note(&rows), verdicts(&rows)), (None, vec![false, false]));
    }
}
