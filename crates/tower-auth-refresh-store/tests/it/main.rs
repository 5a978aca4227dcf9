//! Tests of the stores by their public interface.
#![cfg(feature = "file")]

mod conformance;
mod directory;
mod peer;
