//! `faasnet state export|import`: a stopped controller's state as a file; `faasnet token`.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use faasnet_api::ClusterSecret;

use crate::cli::Global;
use crate::{client, output};

/// `faasnet state …`
#[derive(Debug, Subcommand)]
pub enum StateCommand {
    /// Write functions, nodes and trees to a file; the controller must be stopped
    Export(StateArgs),
    /// Make such a file the state of a stopped controller
    Import(ImportArgs),
}

/// Where from and where to.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet state export backup.json
  faasnet state export - | ssh other faasnet state import -

The file is JSON with a checksum. Keep it like the cluster's secret: it holds the keys that sign tickets and the\npasswords of `faasnet secret`.")]
pub struct StateArgs {
    /// The file; `-` is standard output or input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Where the controller keeps its state
    #[arg(
        long,
        env = "FAASNET_CONTROLLER_STATE_DIR",
        value_name = "DIR",
        default_value = "/var/lib/faasnet-controller"
    )]
    pub state_dir: PathBuf,
}

/// `faasnet state import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// Where from and where to.
    #[command(flatten)]
    pub state: StateArgs,
    /// Replace a state that has functions or nodes; the old one is kept beside it
    #[arg(long)]
    pub force: bool,
}

/// Runs one of the commands.
pub fn run(global: &Global, command: StateCommand) -> Result<()> {
    match command {
        StateCommand::Export(args) => export(global, &args),
        StateCommand::Import(args) => import(global, &args),
    }
}

/// `faasnet token`
pub fn token(global: &Global) -> Result<()> {
    let secret = client::read_secret(global.secret.as_deref(), global.secret_file.as_deref())?;
    let secret = ClusterSecret::new(&secret.context("name the cluster's secret with --secret-file")?);
    match global.json {
        true => output::json(&serde_json::json!({ "token": secret.rpc_token() })),
        false => output::line(secret.rpc_token()),
    }
}

fn export(global: &Global, args: &StateArgs) -> Result<()> {
    let (text, contents) = faasnet_controller::export(&args.state_dir)?;
    if args.file == Path::new("-") {
        return output::line(text);
    }
    write_private(&args.file, &text).with_context(|| format!("cannot write {}", args.file.display()))?;
    match global.json {
        true => output::json(&contents),
        false => output::line(format!(
            "exported {} functions and {} nodes to {}",
            contents.functions,
            contents.nodes,
            args.file.display()
        )),
    }
}

fn import(global: &Global, args: &ImportArgs) -> Result<()> {
    let StateArgs { file, state_dir } = &args.state;
    let text = match file == Path::new("-") {
        true => std::io::read_to_string(std::io::stdin().lock()).context("cannot read standard input")?,
        false => std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
    };
    let contents = faasnet_controller::import(state_dir, &text, args.force)?;
    if global.json {
        return output::json(&contents);
    }
    output::line(format!(
        "imported {} functions and {} nodes into {}",
        contents.functions,
        contents.nodes,
        state_dir.display()
    ))?;
    match contents.replaced {
        Some(old) => output::line(format!("the old state is kept as {}", old.display())),
        None => Ok(()),
    }
}

/// A file that only its owner can read, complete or not there.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&part, path)
}
