//! `GET /healthz`: whether the gateway runs. It says nothing of those behind it: restarting it would not mend them.

/// Says so.
pub(crate) async fn healthz() -> &'static str {
    "ok\n"
}
