//! The soak: one relay among neighbours that stall, die and come back, while functions come and go. At rest it must be as it was before.
//!
//! A minute as a test; as long as wanted by `tools/soak`. The relay itself is left alone: what is disturbed are the nodes around it.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use faasnet::registry::RegistryOptions;
use faasnet_api::v1;
use faasnet_lab::process;

use crate::common::{Lab, MIB, TENANT, noise};
use crate::stopped::signal;

const AGENTS: usize = 5;
/// Place of the relay that is watched, `n1`.
const RELAY: usize = 0;
/// A transfer takes about a second.
const RATE: u64 = 12 * MIB;
const IMAGES: [(&str, u64); 2] = [("app", 10 * MIB), ("tool", 3 * MIB + 77)];
/// Without FAASNET_SOAK_SECONDS.
const SECONDS: u64 = 60;
/// Longer than a child's patience, shorter than the controller's.
const LONGEST_STALL_MS: u64 = 900;
/// How long the relay may take to let go of everything.
const SETTLE: Duration = Duration::from_secs(10);
/// The least rounds from which thirds mean something.
const LEAST_ROUNDS: usize = 6;

/// What the last third of the rounds may have more than the first: the allocator keeps some pages from the largest round so far, and a
/// connection to the admin endpoint may be closing.
const MORE_ANONYMOUS: u64 = 8 * MIB;
const MORE_DESCRIPTORS: u64 = 2;
const MORE_PIPES: u64 = 0;
const MORE_LEASED: u64 = 0;

/// The relay after a round, when it holds no function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    anonymous_bytes: u64,
    descriptors: u64,
    pipes: u64,
    leased_buffers: u64,
}

/// One of the figures, its name, and how much more of it the last third may have.
type Figure = (&'static str, fn(&Sample) -> u64, u64);

const FIGURES: [Figure; 4] = [
    ("anonymous bytes", |sample| sample.anonymous_bytes, MORE_ANONYMOUS),
    ("descriptors", |sample| sample.descriptors, MORE_DESCRIPTORS),
    ("pipes", |sample| sample.pipes, MORE_PIPES),
    ("leased buffers", |sample| sample.leased_buffers, MORE_LEASED),
];

/// xorshift64: the same disturbances for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pause(&mut self, most_ms: u64) -> Duration {
        Duration::from_millis(self.below(most_ms))
    }
}

/// A number from the environment, such as tools/soak sets it.
fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// Catches descriptors, pipes, leases and memory that a relay does not give back: after a child that stalled, a neighbour that was
/// killed, an image that was complete and one that was dropped in the middle.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_does_not_grow() {
    let seconds = Duration::from_secs(setting("FAASNET_SOAK_SECONDS").unwrap_or(SECONDS));
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = setting("FAASNET_SOAK_SEED").unwrap_or_else(|| clock() & 0xffff_ffff);
    // Shown when the test fails.
    println!("soak: seed {seed} (FAASNET_SOAK_SEED), {seconds:?}");
    let layers = |(index, (name, bytes)): (usize, &(&'static str, u64))| (*name, vec![noise(index as u64 + 1, *bytes)]);
    let images: Vec<_> = IMAGES.iter().enumerate().map(layers).collect();
    let options = RegistryOptions { rate: Some(RATE), ..RegistryOptions::default() };
    let mut lab = Lab::start(AGENTS, &images, options).await;
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (mut samples, mut active) = (Vec::new(), Duration::ZERO);
    while active < seconds || samples.len() < LEAST_ROUNDS {
        let begin = Instant::now();
        round(&mut lab, &mut dice).await;
        samples.push(settled(&lab).await);
        active += begin.elapsed();
        println!("soak: {:4.0} s, round {:3}: {}", active.as_secs_f64(), samples.len(), samples[samples.len() - 1]);
    }
    judge(&samples, seed);
}

/// Functions are created and provisioned, neighbours are disturbed, functions are removed: at their end, or in the middle.
async fn round(lab: &mut Lab, dice: &mut Dice) {
    let functions = &IMAGES[..1 + dice.below(IMAGES.len() as u64) as usize];
    for (name, _) in functions {
        let policy = ["twin", "complete"][dice.below(2) as usize];
        lab.create(name, policy).await.unwrap();
        lab.begin_provision(name).await;
        lab.wait_agent(RELAY, name, "assigned", |_| true).await;
    }
    for _ in 0..1 + dice.below(3) {
        // The moment and the length of a disturbance are what is tested; nothing is waited for.
        tokio::time::sleep(dice.pause(300)).await;
        disturb(lab, dice).await;
    }
    let to_the_end = dice.below(4) != 0;
    for (name, _) in functions {
        for agent in (0..AGENTS).filter(|_| to_the_end) {
            lab.wait_agent(agent, name, "complete", |held| held.state == "complete").await;
        }
        remove(lab, name).await;
    }
}

async fn disturb(lab: &mut Lab, dice: &mut Dice) {
    let victim = 1 + dice.below(AGENTS as u64 - 1) as usize;
    match dice.below(3) {
        0 => {
            lab.cluster.agents[victim].kill().await.unwrap();
            tokio::time::sleep(dice.pause(500)).await;
            lab.cluster.restart_agent(victim).await.unwrap();
        }
        _ => {
            signal(lab, victim, "STOP");
            tokio::time::sleep(dice.pause(LONGEST_STALL_MS)).await;
            signal(lab, victim, "CONT");
        }
    }
}

/// Takes the function from all nodes, with its blocks: the next round fetches all of them again.
async fn remove(lab: &Lab, name: &str) {
    let mut control = lab.cluster.control().await.unwrap();
    let (tenant, function) = (TENANT.to_owned(), name.to_owned());
    let release = v1::ReleaseRequest { tenant, function, nodes: Vec::new(), discard: true };
    control.release(release).await.unwrap();
    control.remove_function(v1::RemoveFunctionRequest { tenant: TENANT.into(), function: name.into() }).await.unwrap();
    let begin = Instant::now();
    while lab.held(RELAY, name).await.is_some() {
        assert!(begin.elapsed() < SETTLE, "n1 still holds {name}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The relay when nothing about it changes any more.
async fn settled(lab: &Lab) -> Sample {
    let begin = Instant::now();
    let mut last = sample(lab).await;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = sample(lab).await;
        let same = |of: fn(&Sample) -> u64| of(&now) == of(&last);
        if same(|sample| sample.descriptors) && same(|sample| sample.pipes) && same(|sample| sample.leased_buffers) {
            return now;
        }
        assert!(begin.elapsed() < SETTLE, "n1 does not come to rest: {last:?}, then {now:?}");
        last = now;
    }
}

async fn sample(lab: &Lab) -> Sample {
    let relay = &lab.cluster.agents[RELAY];
    let leased_buffers = lab.leased_buffers(RELAY).await;
    let pid = relay.pid().expect("n1 runs; its log tells why it does not");
    let descriptors = process::descriptors(pid);
    Sample {
        anonymous_bytes: process::usage(pid).unwrap().anonymous_bytes,
        descriptors: descriptors.len() as u64,
        pipes: descriptors.iter().filter(|kind| *kind == "pipe").count() as u64,
        leased_buffers,
    }
}

/// The most of the last third of the rounds against the most of the first.
fn judge(samples: &[Sample], seed: u64) {
    let third = samples.len() / 3;
    let (first, last) = (&samples[..third], &samples[samples.len() - third..]);
    let most = |samples: &[Sample], of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or(0);
    let grown: Vec<_> = FIGURES
        .iter()
        .filter_map(|(name, of, more)| {
            let (before, after) = (most(first, *of), most(last, *of));
            println!("soak: {name}: {before} in the first third, {after} in the last, {more} more are allowed");
            (after > before + more).then(|| format!("{name} from {before} to {after}, more than {more}"))
        })
        .collect();
    assert!(grown.is_empty(), "seed {seed}: the relay grew over {} rounds: {}", samples.len(), grown.join("; "));
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { anonymous_bytes, descriptors, pipes, leased_buffers } = self;
        let mib = *anonymous_bytes as f64 / MIB as f64;
        write!(f, "{mib:5.1} MiB anonymous, {descriptors} descriptors, {pipes} pipes, {leased_buffers} leased buffers")
    }
}

/// Catches a judge that lets everything pass.
#[test]
fn growth_is_seen() {
    let samples = |leak: fn(&mut Sample, u64)| -> Vec<Sample> {
        let rest = Sample { anonymous_bytes: 20 * MIB, descriptors: 30, pipes: 4, leased_buffers: 0 };
        let sample = |round| {
            let mut sample = rest;
            leak(&mut sample, round);
            sample
        };
        (0..12).map(sample).collect()
    };
    judge(&samples(|_, _| ()), 0);
    let leaks: [fn(&mut Sample, u64); 4] = [
        |sample, round| sample.anonymous_bytes += round * MIB * 3 / 2,
        |sample, round| sample.descriptors += round,
        |sample, round| sample.pipes += round / 6,
        |sample, round| sample.leased_buffers += round / 6,
    ];
    for leak in leaks {
        let samples = samples(leak);
        assert!(std::panic::catch_unwind(|| judge(&samples, 0)).is_err());
    }
}
