//! kill -9 of the controller, again and again, while clients create, provision, scale and remove: what it acknowledged is there afterwards.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

use faasnet::client::Control;
use faasnet::registry::RegistryOptions;
use faasnet_api::v1;
use tokio_stream::StreamExt;

use crate::common::{DEADLINE, Lab, TENANT, noise};

/// How often the controller is killed; more with `FAASNET_TEST_KILLS`.
const KILLS: u64 = 12;
/// The longest that it lives after a start, in milliseconds.
const LIFE_MS: u64 = 500;
const FUNCTIONS: u64 = 6;

/// What is known of one function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    Absent,
    Present,
    /// Provisioned on both nodes, and acknowledged.
    Provisioned,
    /// Brought down to one node, and acknowledged; the other one may still be on its way out.
    Scaled,
    /// The controller died before it answered: any of what it was and what it was to be.
    Unanswered,
}

/// Random numbers from a seed that a failure prints.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed ^ (mixed >> 27)) >> 11) % bound
    }
}

fn name(index: u64) -> String {
    format!("f{index}")
}

/// One step of a client; an error means that the controller is gone.
async fn step(control: &mut Control, reference: &str, index: u64, known: Known) -> Result<Known, tonic::Status> {
    let (tenant, function) = (TENANT.to_owned(), name(index));
    match known {
        Known::Absent | Known::Unanswered => {
            let request = v1::CreateFunctionRequest {
                tenant,
                function,
                reference: reference.into(),
                plain_http: true,
                ..Default::default()
            };
            let mut answers = control.create_function(request).await?.into_inner();
            while let Some(answer) = answers.next().await {
                if answer?.created.is_some() {
                    return Ok(Known::Present);
                }
            }
            Err(tonic::Status::unavailable("the answer broke off"))
        }
        Known::Present => {
            let request = v1::ProvisionRequest { tenant, function, count: 2, ..Default::default() };
            // The first message says that the intent is stored.
            match control.provision(request).await?.into_inner().next().await {
                Some(first) => first.map(|_| Known::Provisioned),
                None => Err(tonic::Status::unavailable("the answer broke off")),
            }
        }
        Known::Provisioned if index % 2 == 1 => {
            let request = v1::ScaleRequest { tenant, function, count: 1 };
            match control.scale(request).await?.into_inner().next().await {
                Some(first) => first.map(|_| Known::Scaled),
                None => Err(tonic::Status::unavailable("the answer broke off")),
            }
        }
        Known::Provisioned | Known::Scaled => {
            control.remove_function(v1::RemoveFunctionRequest { tenant, function }).await?;
            Ok(Known::Absent)
        }
    }
}

/// Works until the controller is gone. Answers how many steps were acknowledged.
async fn work(mut control: Control, reference: &str, dice: &mut Dice, known: &mut BTreeMap<u64, Known>) -> u64 {
    let mut steps = 0;
    loop {
        let index = dice.below(FUNCTIONS);
        let before = known.insert(index, Known::Unanswered).unwrap_or(Known::Absent);
        match step(&mut control, reference, index, before).await {
            Ok(after) => {
                known.insert(index, after);
                steps += 1;
            }
            // Said by the connection, not by the controller, or by one that is stopping.
            Err(status) if status.source().is_some() || status.code() == tonic::Code::Unavailable => return steps,
            // A provision right after a restart, when the agents are not back yet: refused, so nothing changed.
            Err(status) if status.code() == tonic::Code::FailedPrecondition => drop(known.insert(index, before)),
            Err(status) => panic!("{before:?} f{index}: {status}"),
        }
    }
}

/// Compares what there is with what was acknowledged, and takes what was not answered as it turned out.
async fn check(lab: &Lab, known: &mut BTreeMap<u64, Known>) -> u64 {
    let mut control = lab.cluster.control().await.unwrap();
    let reply = control.list_functions(v1::ListFunctionsRequest {}).await.unwrap().into_inner();
    for index in 0..FUNCTIONS {
        let found = reply.functions.iter().find(|function| function.function == name(index));
        let found = match found.map(|function| (function.nodes, function.count)) {
            None => Known::Absent,
            Some((0, 0)) => Known::Present,
            Some((2, 2)) => Known::Provisioned,
            Some((1 | 2, 1)) => Known::Scaled,
            Some((nodes, count)) => panic!("f{index} shall be on {count} nodes and is on {nodes}: half of a commit"),
        };
        let told = known.get(&index).copied().unwrap_or(Known::Absent);
        assert!(told == Known::Unanswered || told == found, "f{index} was acknowledged as {told:?} and is {found:?}");
        known.insert(index, found);
    }
    control.get_version(v1::GetVersionRequest {}).await.unwrap().into_inner().term
}

/// Catches an answer that is given before its records are on disk, a commit that is torn, and a term that is used twice.
#[tokio::test(flavor = "multi_thread")]
async fn kills_of_the_controller_lose_nothing_that_it_acknowledged() {
    let kills = std::env::var("FAASNET_TEST_KILLS").ok().map_or(KILLS, |kills| kills.parse().unwrap());
    let seed = std::env::var("FAASNET_TEST_SEED").ok().map_or(7, |seed| seed.parse().unwrap());
    eprintln!("{kills} kills, FAASNET_TEST_SEED={seed}");
    let mut lab = Lab::start(2, &[("app", vec![noise(1, 10_000)])], RegistryOptions::default()).await;
    let reference = lab.reference("app");
    let (mut dice, mut known, mut steps, mut term, mut lives) = (Dice(seed), BTreeMap::new(), 0, 0, 0);
    // A busy machine lets a controller do little in its life; then it gets a few more.
    while lives < kills || (steps <= kills && lives < 4 * kills) {
        lives += 1;
        let life = Duration::from_millis(dice.below(LIFE_MS));
        let control = lab.cluster.control().await.unwrap();
        let killed = async {
            tokio::time::sleep(life).await;
            lab.cluster.controller.kill().await.unwrap();
        };
        let worked = work(control, &reference, &mut dice, &mut known);
        steps += tokio::join!(killed, worked).1;
        lab.cluster.restart_controller().await.unwrap();
        let now = check(&lab, &mut known).await;
        assert!(now > term, "term {now} after term {term}");
        term = now;
    }
    assert!(steps > kills, "only {steps} steps were acknowledged in {lives} lives: the test tests nothing");
    // What is intended becomes true as if nothing had happened.
    let started = Instant::now();
    lab.cluster.wait_live(2).await.unwrap();
    for index in (0..FUNCTIONS).filter(|index| known[index] == Known::Provisioned) {
        while !lab.trees(&name(index)).await.nodes.iter().all(|node| node.is_complete()) {
            assert!(started.elapsed() < DEADLINE, "f{index} is never complete");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
