//! The body, its record and its slot, seen from the attempt and from the handle.

#[cfg(not(loom))]
mod fixture;
#[cfg(not(loom))]
mod model;
#[cfg(not(loom))]
mod scenarios;
#[cfg(loom)]
mod threads;
