//! Tests of the state machine against a small world of pretended agents.

mod blame;
mod capacity;
mod figures;
mod going;
mod keys;
mod neighbours;
mod properties;
mod restart;
mod scenarios;
mod secrets;
mod trouble;
mod world;
