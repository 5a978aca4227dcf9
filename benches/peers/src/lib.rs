//! The peers that weigh too much for the ordinary benches, and what is measured of them.

pub mod cf_gears;
pub mod kube;
pub mod plot;
pub mod revocations;
pub mod stack;
