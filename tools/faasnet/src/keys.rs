//! `faasnet keys`: the keys with which the controller signs tickets.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use clap::{Args, Subcommand};
use faasnet_api::v1;
use serde::Serialize;

use crate::cli::Global;
use crate::client;
use crate::output;

/// `faasnet keys …`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// List the keys whose tickets are accepted
    Ls,
    /// Sign tickets with a new key; those of the present one hold until they expire, transfers go on
    Rotate,
    /// Make a key's tickets worthless at once; nodes get others, connections that were let in go on
    Revoke(RevokeArgs),
}

/// `faasnet keys revoke`
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The key, as listed; the beginning of its id will do
    pub key: String,
}

/// One key as it is printed.
#[derive(Debug, Serialize)]
struct KeyView {
    key: String,
    state: String,
    /// When the next key becomes the current one, or a previous one ends; seconds since the Unix epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    changes_at: Option<u64>,
}

/// Runs a subcommand.
pub async fn run(global: &Global, command: KeysCommand) -> Result<()> {
    let mut control = global.connect().await?;
    let reply = match command {
        KeysCommand::Ls => control.list_keys(v1::ListKeysRequest {}).await,
        KeysCommand::Rotate => control.rotate_keys(v1::RotateKeysRequest {}).await,
        KeysCommand::Revoke(args) => control.revoke_key(v1::RevokeKeyRequest { key_id: args.key }).await,
    };
    let keys = reply.map_err(client::explain)?.into_inner().keys.into_iter().map(|key| KeyView {
        key: key.key_id,
        state: key.state,
        changes_at: Some(key.changes_at).filter(|at| *at != 0),
    });
    let keys: Vec<KeyView> = keys.collect();
    if global.json {
        return output::json(&keys);
    }
    let rows = keys.into_iter().map(|key| vec![key.key, key.state.clone(), describe(&key.state, key.changes_at)]);
    output::line(output::table(&["key", "state", ""], rows))
}

fn describe(state: &str, changes_at: Option<u64>) -> String {
    let Some(at) = changes_at else { return String::new() };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let left = humantime::format_duration(Duration::from_secs(at.saturating_sub(now)));
    match state {
        "next" => format!("signs in {left}"),
        _ => format!("its tickets hold for {left}"),
    }
}
