//! The `faasnet` program as a library: command line, client commands, daemons, demo. `main.rs` only sets up the process.
//!
//! What a command does lives in the crate that owns it; here are parsing, printing, and the processes of the demo.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod bench_commands;
pub mod call;
pub mod certs;
pub mod cli;
pub mod client;
pub mod cluster;
pub mod crowd;
pub mod daemon;
pub mod daemon_args;
pub mod demo;
pub mod drain;
pub mod explain;
pub mod functions;
pub mod idle;
pub mod image_commands;
pub mod install;
pub mod keys;
pub mod lab_commands;
pub mod nodes;
pub mod output;
pub mod progress;
pub mod provision;
pub mod pull;
pub mod registry;
pub mod room;
pub mod run;
pub mod secret;
pub mod service;
pub mod settings;
pub mod sim_commands;
mod spans;
pub mod state_commands;
pub mod tree_view;
pub mod tune;
pub mod view;
