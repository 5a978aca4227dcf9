//! The peers with too many dependencies for the main workspace, and the experiments with them.

pub mod cf_gears;
pub mod kube;
pub mod plot;
pub mod revocations;
pub mod stack;
pub mod tokens;
