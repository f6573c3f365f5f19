//! Misbehaviour on request: what real registries do to their clients, for tests of those clients.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// What to do wrong with GETs of blobs. The default does nothing wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Answer so many blob requests with `fail_status`.
    pub fail_first: u32,
    /// The status of those.
    pub fail_status: u16,
    /// `Retry-After` of those, in seconds.
    pub retry_after: Option<u64>,
    /// Cut the connection after so many body bytes,
    pub cut_after: Option<u64>,
    /// of so many answers that are longer.
    pub cut_times: u32,
    /// Send nothing more after so many body bytes,
    pub stall_after: Option<u64>,
    /// of so many answers that are longer.
    pub stall_times: u32,
    /// Answer requests for a range with the whole blob.
    pub ignore_ranges: bool,
    /// Ask for a token.
    pub token: Option<TokenAuth>,
}

/// Token authentication as registries ask for it.
#[derive(Debug, Clone)]
pub struct TokenAuth {
    /// User name and password that the token realm wants; `None`: anybody gets a token.
    pub login: Option<(String, String)>,
    /// How many requests a token is good for.
    pub requests: u32,
}

/// The faults that are still to come.
#[derive(Debug)]
pub(super) struct FaultState {
    faults: Faults,
    fail: AtomicU32,
    cut: AtomicU32,
    stall: AtomicU32,
    token: Mutex<Option<(String, u32)>>,
    tokens: AtomicU64,
}

/// What goes wrong with one body, and after how many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFault {
    None,
    Cut(u64),
    Stall(u64),
}

impl FaultState {
    pub(super) fn new(faults: Faults) -> Self {
        Self {
            fail: AtomicU32::new(faults.fail_first),
            cut: AtomicU32::new(faults.cut_times),
            stall: AtomicU32::new(faults.stall_times),
            token: Mutex::default(),
            tokens: AtomicU64::new(0),
            faults,
        }
    }

    /// The status to fail a blob request with, and `Retry-After`.
    pub(super) fn next_failure(&self) -> Option<(u16, Option<u64>)> {
        take(&self.fail).then_some((self.faults.fail_status, self.faults.retry_after))
    }

    pub(super) fn ignores_ranges(&self) -> bool {
        self.faults.ignore_ranges
    }

    /// What to do to a body of `len` bytes.
    pub(super) fn next_body_fault(&self, len: u64) -> BodyFault {
        match (self.faults.cut_after, self.faults.stall_after) {
            (Some(after), _) if len > after && take(&self.cut) => BodyFault::Cut(after),
            (_, Some(after)) if len > after && take(&self.stall) => BodyFault::Stall(after),
            _ => BodyFault::None,
        }
    }

    pub(super) fn token_auth(&self) -> Option<&TokenAuth> {
        self.faults.token.as_ref()
    }

    /// Makes a new token; the one before is no good any more.
    pub(super) fn issue_token(&self, auth: &TokenAuth) -> String {
        // Not a secret: this registry serves tests.
        let token = format!("token-{}", self.tokens.fetch_add(1, Ordering::Relaxed));
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = Some((token.clone(), auth.requests));
        token
    }

    /// Whether a token is still good for one request.
    pub(super) fn use_token(&self, presented: Option<&str>) -> bool {
        let mut token = self.token.lock().unwrap_or_else(PoisonError::into_inner);
        match token.as_mut() {
            Some((token, left)) if presented == Some(token) && *left > 0 => {
                *left -= 1;
                true
            }
            _ => false,
        }
    }
}

fn take(left: &AtomicU32) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}
