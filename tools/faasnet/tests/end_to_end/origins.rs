//! Registries that misbehave in the ways that real ones do, while nodes are being provisioned.

use faasnet::registry::{Faults, RegistryOptions, TokenAuth};

use crate::common::{Lab, MIB, noise};

/// Registers while all is well, provisions three nodes of the twin trees with the fault, and checks every byte.
async fn survive(faults: Faults) -> (Lab, u64) {
    let layers = vec![noise(1, 12 * MIB), noise(2, 6 * MIB + 77)];
    let options = RegistryOptions { faults, ..RegistryOptions::default() };
    let lab = Lab::start(3, &[("app", layers)], options).await;
    let function = lab.create("app", "twin").await.unwrap();
    let before = lab.origin_bytes();
    let nodes = lab.provision("app").await.unwrap();
    assert!(nodes.iter().all(|node| node.is_complete()), "{nodes:?}");
    lab.wait_verified(&function, 0..3).await;
    let sent = lab.origin_bytes() - before;
    (lab, sent)
}

/// Catches a root that gives up, or never asks for a token anew: each is good for four requests only.
#[tokio::test(flavor = "multi_thread")]
async fn tokens_that_expire() {
    survive(Faults { token: Some(TokenAuth { login: None, requests: 4 }), ..Faults::default() }).await;
}

/// Catches a registry's request to slow down that is taken for the end.
#[tokio::test(flavor = "multi_thread")]
async fn too_many_requests() {
    survive(Faults { fail_first: 4, fail_status: 429, retry_after: Some(1), ..Faults::default() }).await;
}

/// Catches a server error that is taken for the end.
#[tokio::test(flavor = "multi_thread")]
async fn server_errors() {
    survive(Faults { fail_first: 3, fail_status: 500, ..Faults::default() }).await;
}

/// Catches a cut connection after which the whole blob is read again.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_cut() {
    let (_lab, sent) = survive(Faults { cut_after: Some(3 * MIB + 1), cut_times: 3, ..Faults::default() }).await;
    assert!(sent < 22 * MIB, "the origin sent {sent}");
}

/// Catches a connection that says nothing more and is waited for for ever.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_stall() {
    survive(Faults { stall_after: Some(2 * MIB), stall_times: 1, ..Faults::default() }).await;
}

/// Catches an origin without ranges that is read by every root, or by none.
#[tokio::test(flavor = "multi_thread")]
async fn no_ranges() {
    let (_lab, sent) = survive(Faults { ignore_ranges: true, ..Faults::default() }).await;
    assert!(sent as f64 <= 1.02 * (18 * MIB + 4096) as f64, "the origin sent {sent}");
}

/// Catches a function that is registered although its image is not there, and an error that does not say what is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_image_registers_nothing() {
    let lab = Lab::start(1, &[("app", vec![vec![1]])], RegistryOptions::default()).await;
    let error = lab.create("other", "twin").await.unwrap_err().to_string();
    assert!(error.contains("other"), "{error}");
    drop(lab);
    let failing = Faults { fail_first: u32::MAX, fail_status: 404, ..Faults::default() };
    let options = RegistryOptions { faults: failing, ..RegistryOptions::default() };
    let broken = Lab::start(1, &[("app", vec![vec![1]])], options).await;
    let error = broken.create("app", "twin").await.unwrap_err().to_string();
    assert!(error.contains("does not exist"), "{error}");
    let mut control = broken.cluster.control().await.unwrap();
    let functions = control.list_functions(faasnet_api::v1::ListFunctionsRequest {});
    assert!(functions.await.unwrap().into_inner().functions.is_empty());
}
