//! What the state machine must be told once: times and limits.

/// Times and limits of the state machine; `Config` documents each.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub struct Settings {
    /// What the first ticket key is made of when the records hold none; random.
    pub ticket_seed: [u8; 32],
    pub heartbeat_ms: u32,
    pub idle_heartbeat_ms: u32,
    pub suspect_after_missed: u32,
    pub reattach_ms: u64,
    pub restart_grace_ms: u64,
    pub functions_per_node: u32,
    pub memory_percent: u32,
    pub idle_reclaim_ms: u64,
    pub drain_patience_ms: u64,
    pub slow_percent: u32,
    pub receive_only_percent: u32,
    pub straggler_retry_ms: u64,
    pub origin_lease_ms: u64,
    pub forget_dead_ms: u64,
    pub progress_ms: u64,
}

impl Settings {
    /// The defaults.
    pub fn new(ticket_seed: [u8; 32]) -> Self {
        Self {
            ticket_seed,
            heartbeat_ms: 500,
            idle_heartbeat_ms: 5_000,
            suspect_after_missed: 2,
            reattach_ms: 10_000,
            restart_grace_ms: 2_000,
            functions_per_node: 20,
            memory_percent: 90,
            idle_reclaim_ms: 15 * 60 * 1_000,
            drain_patience_ms: 60_000,
            slow_percent: 70,
            receive_only_percent: 50,
            straggler_retry_ms: 10 * 60 * 1_000,
            origin_lease_ms: 30_000,
            forget_dead_ms: 24 * 3_600 * 1_000,
            progress_ms: 200,
        }
    }
}
