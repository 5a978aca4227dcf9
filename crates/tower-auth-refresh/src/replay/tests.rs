//! Tests of the body, its record and its slot, through the attempt and the handle.

#[cfg(not(loom))]
mod fixture;
#[cfg(not(loom))]
mod model;
#[cfg(not(loom))]
mod scenarios;
#[cfg(loom)]
mod threads;
