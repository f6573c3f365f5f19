//! What the state machine must be told once: times and limits.

use faasnet_api::ClusterSecret;

/// Times and limits of the state machine; `Config` documents each.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Settings {
    pub secret: ClusterSecret,
    pub heartbeat_ms: u32,
    pub idle_heartbeat_ms: u32,
    pub suspect_after_missed: u32,
    pub reattach_ms: u64,
    pub restart_grace_ms: u64,
    pub functions_per_node: u32,
    pub forget_dead_ms: u64,
    pub progress_ms: u64,
}
