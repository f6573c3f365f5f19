//! `faasnet secret`: passwords of private registries, kept by the controller for the nodes that read them.

use std::fs;
use std::io::{IsTerminal, Read, stdin};
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use faasnet_api::{is_read_by_others, v1};
use serde::Serialize;

use crate::cli::{Global, Tenant};
use crate::{client, output};

/// The longest password that is read; the controller refuses what is longer.
const MAX_PASSWORD_BYTES: u64 = 64 << 10;

/// `faasnet secret …`
#[derive(Debug, Subcommand)]
pub enum SecretCommand {
    /// Have the controller know a registry's user name and password; replaces what it knew
    Set(SetArgs),
    /// List the registries of which the controller knows a password; it is never shown
    #[command(visible_alias = "ls")]
    List,
    /// Have the controller, and the nodes that it told, forget a password
    #[command(visible_alias = "rm")]
    Remove(RemoveArgs),
}

/// `faasnet secret set`
#[derive(Debug, Args)]
#[command(after_help = "\
The password comes from standard input, or from a file. The controller keeps it in its state (a file of mode 600, not encrypted) and gives it
to nodes that read the registry for a function of the tenant. A host's own Docker configuration goes before it. A registry that speaks plain
HTTP gets it only on the host that reads it (localhost): anywhere else the network could read it.

Examples:
  faasnet secret set registry.example --username robot < password
  faasnet secret set registry.example:5000 --username robot --password-file /run/keys/robot --tenant acme")]
pub struct SetArgs {
    /// The registry: its host, and its port if it is not the usual one
    pub registry: String,
    /// Whom the registry knows
    #[arg(long, short)]
    pub username: String,
    /// A file with the password; white space at its end does not count
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// For whose functions.
    #[command(flatten)]
    pub tenant: Tenant,
}

/// `faasnet secret remove`
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The registry
    pub registry: String,
    /// For whose functions.
    #[command(flatten)]
    pub tenant: Tenant,
}

#[derive(Debug, Serialize)]
struct SecretView {
    tenant: String,
    registry: String,
    username: String,
}

/// Runs a subcommand.
pub async fn run(global: &Global, command: SecretCommand) -> Result<()> {
    let mut control = global.connect().await?;
    match command {
        SecretCommand::Set(args) => {
            let password = password(&args)?;
            let (tenant, registry, username) = (args.tenant.tenant, args.registry, args.username);
            let request = v1::SetSecretRequest { tenant, registry, username, password };
            control.set_secret(request).await.map_err(client::explain)?;
        }
        SecretCommand::Remove(args) => {
            let request = v1::RemoveSecretRequest { tenant: args.tenant.tenant, registry: args.registry };
            control.remove_secret(request).await.map_err(client::explain)?;
        }
        SecretCommand::List => {
            let reply = control.list_secrets(v1::ListSecretsRequest {}).await.map_err(client::explain)?;
            return print(global, reply.into_inner().secrets);
        }
    }
    if global.json { output::json(&serde_json::json!({})) } else { Ok(()) }
}

fn print(global: &Global, secrets: Vec<v1::SecretInfo>) -> Result<()> {
    let view = |v1::SecretInfo { tenant, registry, username }| SecretView { tenant, registry, username };
    let secrets: Vec<SecretView> = secrets.into_iter().map(view).collect();
    if global.json {
        return output::json(&secrets);
    }
    let rows = secrets.into_iter().map(|secret| vec![secret.tenant, secret.registry, secret.username]);
    output::line(output::table(&["tenant", "registry", "user name"], rows))
}

fn password(args: &SetArgs) -> Result<String> {
    let mut text = String::new();
    match &args.password_file {
        Some(path) => {
            if is_read_by_others(path) {
                tracing::warn!(file = %path.display(), "every user of this host can read this file with a password; chmod o= it");
            }
            let file = fs::File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
            file.take(MAX_PASSWORD_BYTES).read_to_string(&mut text).context("the password's file is not text")?;
        }
        None if stdin().is_terminal() => {
            bail!(
                "the password is not asked for on a terminal, which would show it; pipe it in, or give --password-file FILE"
            )
        }
        None => {
            stdin().take(MAX_PASSWORD_BYTES).read_to_string(&mut text).context("the password cannot be read")?;
        }
    }
    let password = text.trim_end();
    ensure!(!password.is_empty(), "the password is empty; pipe it in, or give --password-file FILE");
    Ok(password.into())
}
