//! `faasnet function create | ls | rm`.

use anyhow::{Result, bail};
use faasnet_api::v1;
use tokio_stream::StreamExt;

use crate::cli::{CreateArgs, DEFAULT_TENANT, FunctionCommand, Global, RemoveArgs};
use crate::client::{self, Control};
use crate::output;
use crate::progress;
use crate::view::FunctionView;

/// Runs one of the commands.
pub async fn run(global: &Global, command: FunctionCommand) -> Result<()> {
    let mut control = global.connect().await?;
    match command {
        FunctionCommand::Create(args) => create_command(global, &mut control, args).await,
        FunctionCommand::Ls => list(global, &mut control).await,
        FunctionCommand::Rm(args) => remove(global, &mut control, args).await,
    }
}

async fn create_command(global: &Global, control: &mut Control, args: CreateArgs) -> Result<()> {
    let bar = progress::bar(global.json, "register");
    let request = v1::CreateFunctionRequest {
        tenant: args.tenant.tenant,
        function: args.name,
        reference: absolute_layout(&args.image),
        policy: args.policy.to_string(),
        platform: args.platform.unwrap_or_default(),
        plain_http: args.plain_http,
        memory_mib: args.memory_mib.unwrap_or_default(),
    };
    let created = create(control, request, |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    })
    .await?;
    bar.finish_and_clear();
    if global.json {
        return output::json(&created);
    }
    output::line(format!(
        "{}/{}  {} in {} blobs, {} tree{}",
        created.tenant,
        created.function,
        output::bytes(created.image_bytes),
        created.blobs,
        created.stripes,
        if created.stripes == 1 { "" } else { "s" }
    ))?;
    if !created.note.is_empty() {
        output::line(format!("note: {}", created.note))?;
    }
    let tenant = match created.tenant == DEFAULT_TENANT {
        true => String::new(),
        false => format!(" --tenant {}", created.tenant),
    };
    output::line(format!("next: faasnet provision {}{tenant} --count N", created.function))
}

/// Registers a function; `progress` is told bytes read and bytes in total.
pub async fn create(
    control: &mut Control,
    request: v1::CreateFunctionRequest,
    mut progress: impl FnMut(u64, u64),
) -> Result<FunctionView> {
    let mut stream = control.create_function(request).await.map_err(client::explain)?.into_inner();
    while let Some(message) = stream.next().await {
        let message = message.map_err(client::explain)?;
        progress(message.bytes_read, message.bytes_total);
        if let Some(created) = &message.created {
            return Ok(created.into());
        }
    }
    bail!("the controller ended the registration without an answer; look at its log, then try again")
}

async fn list(global: &Global, control: &mut Control) -> Result<()> {
    let reply = control.list_functions(v1::ListFunctionsRequest {}).await.map_err(client::explain)?.into_inner();
    let functions: Vec<FunctionView> = reply.functions.iter().map(FunctionView::from).collect();
    if global.json {
        return output::json(&functions);
    }
    if functions.is_empty() {
        return output::line("no functions yet; register one with `faasnet function create NAME --image REF`");
    }
    let rows = functions.into_iter().map(|function| {
        vec![
            function.tenant,
            function.function,
            function.policy,
            output::bytes(function.image_bytes),
            function.blobs.to_string(),
            function.nodes.to_string(),
            function.reference,
        ]
    });
    output::line(output::table(&["tenant", "function", "policy", ">image", ">blobs", ">nodes", "~reference"], rows))
}

async fn remove(global: &Global, control: &mut Control, args: RemoveArgs) -> Result<()> {
    let request = v1::RemoveFunctionRequest { tenant: args.tenant.tenant, function: args.name.clone() };
    control.remove_function(request).await.map_err(client::explain)?;
    match global.json {
        true => output::json(&serde_json::json!({ "removed": args.name })),
        false => output::line(format!("removed {}", args.name)),
    }
}

/// A layout is read by the controller and the roots, whose working folder is another: its path must be absolute.
pub fn absolute_layout(reference: &str) -> String {
    let path = std::path::Path::new(reference);
    match path.join("oci-layout").is_file() || path.join("index.json").is_file() {
        true => std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string(),
        false => reference.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches a relative layout path that the controller would look for in its own working folder.
    #[test]
    fn layouts_become_absolute_and_references_stay() {
        let layout = tempfile::tempdir().unwrap();
        std::fs::write(layout.path().join("oci-layout"), "{}").unwrap();
        let twisted = layout.path().join("../").join(layout.path().file_name().unwrap());
        let expected = std::fs::canonicalize(layout.path()).unwrap().display().to_string();
        assert_eq!(absolute_layout(&twisted.display().to_string()), expected);
        assert_eq!(absolute_layout("localhost:5000/app:1"), "localhost:5000/app:1");
    }
}
