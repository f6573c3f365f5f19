//! Runs `ip` and `tc`: one call, or a batch of lines in one process.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use crate::LabError;
use crate::error::Result;

/// Runs a program to its end; its output is the error's text when it fails.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|cause| LabError::Missing { program: program.to_owned(), cause })?;
    check(&format!("{program} {}", arguments.join(" ")), output)
}

/// Feeds `lines` to `program -batch`; `namespace` is where they work.
pub(crate) fn batch(program: &str, namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut command = Command::new(program);
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|cause| LabError::Missing { program: program.to_owned(), cause })?;
    let written = match child.stdin.take() {
        Some(mut input) => input.write_all((lines.join("\n") + "\n").as_bytes()),
        None => Ok(()),
    };
    let what = format!("{program} -batch in {}", namespace.unwrap_or("the machine's namespace"));
    let output = child.wait_with_output().map_err(LabError::io(format!("cannot wait for {what}")))?;
    check(&what, output)?;
    written.map_err(LabError::io(format!("cannot write to {what}")))
}

fn check(command: &str, output: Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let text = [output.stderr, output.stdout].concat();
    let text = String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(LabError::Tool { command: command.to_owned(), output: text })
}
