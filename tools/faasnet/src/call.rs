//! `faasnet call METHOD [JSON]`: any operation of the controller by gRPC, with messages as JSON.

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tonic::{Request, Response, Status, Streaming};

use crate::cli::Global;
use crate::client::{self, Control};
use crate::output;

/// `faasnet call`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  faasnet call ListNodes
  faasnet call Provision '{\"function\": \"resize\", \"count\": 3}'

Prints one JSON object per message. The messages are those of faasnet.proto: field names as there, ids in hexadecimal digits.")]
pub struct CallArgs {
    /// A method of the service faasnet.v1.Control
    pub method: String,
    /// The request [default: all fields at their defaults]
    #[arg(value_name = "JSON", default_value = "{}")]
    pub request: String,
}

/// One arm per method: its name, whether it streams, and the client's function.
macro_rules! dispatch {
    ($control:ident, $args:ident, $($kind:ident $name:literal => $method:ident),* $(,)?) => {
        match $args.method.as_str() {
            $($name => $kind($control.$method(Request::new(request(&$args.request)?)).await).await,)*
            other => bail!("there is no method {other:?}; there are: {}", [$($name),*].join(", ")),
        }
    };
}

/// Calls the method and prints what comes.
pub async fn run(global: &Global, args: CallArgs) -> Result<()> {
    call(&mut global.connect().await?, &args).await
}

async fn call(control: &mut Control, args: &CallArgs) -> Result<()> {
    dispatch!(control, args,
        stream "CreateFunction" => create_function,
        stream "UpdateFunction" => update_function,
        one "RemoveFunction" => remove_function,
        one "ListFunctions" => list_functions,
        one "GetFunction" => get_function,
        stream "Provision" => provision,
        one "Release" => release,
        stream "Scale" => scale,
        stream "Drain" => drain,
        one "GetTree" => get_tree,
        one "ListNodes" => list_nodes,
        one "ListKeys" => list_keys,
        one "RotateKeys" => rotate_keys,
        one "RevokeKey" => revoke_key,
        one "SetSecret" => set_secret,
        one "ListSecrets" => list_secrets,
        one "RemoveSecret" => remove_secret,
        stream "Watch" => watch,
        one "GetVersion" => get_version,
    )
}

fn request<T: DeserializeOwned>(json: &str) -> Result<T> {
    serde_json::from_str(json).with_context(|| format!("{json:?} is not this method's request"))
}

async fn one<T: Serialize>(reply: Result<Response<T>, Status>) -> Result<()> {
    print(&reply.map_err(client::explain)?.into_inner())
}

async fn stream<T: Serialize>(reply: Result<Response<Streaming<T>>, Status>) -> Result<()> {
    let mut messages = reply.map_err(client::explain)?.into_inner();
    while let Some(message) = messages.message().await.map_err(client::explain)? {
        print(&message)?;
    }
    Ok(())
}

fn print(message: &impl Serialize) -> Result<()> {
    output::line(serde_json::to_string(message).context("a message cannot be written as JSON")?)
}

#[cfg(test)]
mod tests {
    /// Catches a method of the contract that nobody can call from here.
    #[test]
    fn every_method_has_an_arm() {
        let contract = include_str!("../../../controlplane/api/proto/faasnet/v1/faasnet.proto");
        let service = contract.split("service Control {").nth(1).and_then(|rest| rest.split("\n}").next()).unwrap();
        let methods = service.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split('(').next());
        let missing: Vec<_> =
            methods.filter(|method| !include_str!("call.rs").contains(&format!(" \"{method}\" =>"))).collect();
        assert_eq!(missing, [""; 0]);
    }
}
