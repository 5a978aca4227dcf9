//! The servers, and the cases that every stack is tested with.

mod api;
pub(crate) mod cases;
mod documents;

mod world;

pub(crate) use api::{Body, Json, Protocol, body, json};
pub(crate) use cases::{Answer, Stack, cases};
pub(crate) use world::World;
