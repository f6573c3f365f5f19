//! The whole program against real processes, sockets and files: what a user runs, and what goes wrong around it.
//!
//! One test program, so that the library is linked once. Every test has a cluster, folders and ports of its own.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod api_document;
mod browser;
mod commands;
mod common;
mod containerd;
mod crash;
mod dashboard;
mod debian_registry;
mod demo;
mod failures;
mod full_store;
mod going;
mod https;
mod idle;
mod image_forms;
mod images;
mod installed;
mod lab;
mod lab_compare;
mod lab_report;
mod live_page;
mod moved_state;
mod origins;
mod package;
mod registering;
mod runtime_hosts;
mod secrets;
mod small_buffers;
mod soak;
mod stopped;
mod trust;
