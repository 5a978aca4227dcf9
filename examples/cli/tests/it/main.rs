//! The app as its users run it: processes in a home of their own, against the testkit.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail the test")]

mod commands;
mod demonstration;
mod keychain;
mod killed;
mod killed_login;
mod killed_logout;
mod sign_in;
mod support;
mod terminal;
mod together;
