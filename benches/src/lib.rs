//! The experiments, each implemented once: for criterion, for the instruction counts and for the report.

pub mod api;
pub mod contention;
pub mod loopback;
pub mod overhead;
pub mod registry;
pub mod rounds;
pub mod shape;
pub mod stack;
pub mod stampede;
pub mod stores;
pub mod upload;
