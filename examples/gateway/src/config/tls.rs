//! The files of TLS: [`Identity`] and [`PeerTls`].

use std::path::PathBuf;

use super::InvalidSetting;

/// A certificate chain and its private key, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The file of the certificate, followed by those that have signed it.
    pub certificate: PathBuf,
    /// The file of the key: PKCS#8, PKCS#1 or SEC1, not encrypted.
    pub key: PathBuf,
}

/// TLS with a server that the gateway calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerTls {
    /// The file of the root certificates that are trusted. Default: `None`, Mozilla's.
    pub ca: Option<PathBuf>,
    /// The certificate that is presented to the server. Default: `None`.
    pub identity: Option<Identity>,
}

impl Identity {
    /// Reads a pair of settings, of which clap requires both or none.
    pub(super) fn read(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Option<Self> {
        Some(Self { certificate: certificate?, key: key? })
    }
}

impl PeerTls {
    /// Refuses settings that would be without effect, because a URL of the server is `http://`.
    pub(super) fn require_https(&self, prefix: &str, (flag, url): (&str, &str)) -> Result<(), InvalidSetting> {
        let is_https = url.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https:"));
        let set = self.ca.as_ref().map(|_| "ca").or(self.identity.as_ref().map(|_| "client-cert"));
        match set {
            Some(set) if !is_https => {
                Err(InvalidSetting::of(&format!("{prefix}-{set}"), format!("{flag} is not https")))
            }
            _ => Ok(()),
        }
    }
}
