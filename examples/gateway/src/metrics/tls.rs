//! [`Tls`]: the gateway's certificate, and handshakes that fail.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use super::{Exposition, increment};

/// The reasons for which handshakes fail.
const FAILURES: [&str; 5] = ["not_tls", "nothing_in_common", "refused_by_client", "unfinished", "other"];

/// The reason for which a handshake fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The client speaks plain HTTP, or another protocol.
    NotTls,
    /// No common version, cipher suite, key exchange or application protocol.
    NothingInCommon,
    /// An alert of the client: it may not trust the certificate.
    RefusedByClient,
    /// The client has hung up, or was too slow, or the connection has made room for another.
    Unfinished,
    Other,
}

#[derive(Debug, Default)]
pub(crate) struct Tls {
    /// Seconds since 1970; 0 without a certificate.
    expiry: AtomicI64,
    failures: [AtomicU64; FAILURES.len()],
}

impl Tls {
    /// Notes the end of the validity of the certificate that is in use, in seconds since 1970.
    pub(crate) fn certificate_expires(&self, at: i64) {
        self.expiry.store(at, Ordering::Relaxed);
    }

    pub(crate) fn handshake_failed(&self, reason: HandshakeFailure) {
        increment(&self.failures[reason as usize]);
    }

    pub(super) fn render(&self, page: &mut Exposition) {
        let name = "gateway_tls_certificate_expiry_seconds";
        let help = "End of the validity of the certificate in use, in seconds since 1970.";
        match self.expiry.load(Ordering::Relaxed) {
            // Without a value: an alert on 0 would always fire.
            0 => page.family(name, "gauge", help),
            expiry => page.single(name, "gauge", help, expiry),
        }
        let name = "gateway_tls_handshakes_failed_total";
        page.labelled(name, "TLS handshakes that have failed, by reason.", "reason", &FAILURES, &self.failures);
    }
}
