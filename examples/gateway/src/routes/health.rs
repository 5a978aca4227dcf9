//! `GET /healthz`: liveness only. A restart of the gateway would not repair the servers behind it.

/// Returns `ok`.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}
