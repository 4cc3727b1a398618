//! Everything of ours that reads bytes which somebody else wrote, as one list of fuzz targets; and a mutation loop
//! that runs them without a nightly compiler. `fuzz/` runs the same list under libFuzzer.
#![forbid(unsafe_code)]

pub mod corpus;
pub mod mutate;
pub mod run;
mod seeds;
mod targets;

pub use targets::{TARGETS, Target, target};
