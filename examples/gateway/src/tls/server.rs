//! [`ServerTls`]: the gateway's own certificate, and handshakes with clients.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::crypto::ring::Ticketer;
use rustls::{InvalidMessage, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{files, provider};
use crate::config::{Identity, InvalidSetting};

/// The settings of TLS begin so.
const PREFIX: &str = "--tls";

/// The certificate and the key of the gateway, which can be replaced while it runs.
#[derive(Debug)]
pub(crate) struct ServerTls {
    identity: Identity,
    config: RwLock<Arc<ServerConfig>>,
}

impl ServerTls {
    /// Reads the files.
    pub(crate) fn open(identity: &Identity) -> Result<Self, InvalidSetting> {
        Ok(Self { identity: identity.clone(), config: RwLock::new(load(identity)?) })
    }

    /// Reads the files again, for the handshakes from now on. If they can't be used, the previous ones stay in use.
    pub(crate) fn reload(&self) -> Result<(), InvalidSetting> {
        let config = load(&self.identity)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Makes the handshake with a client.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        TlsAcceptor::from(config).accept(stream).await.map_err(|error| {
            let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
            match cause {
                Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                    io::Error::other("the client speaks plain HTTP, or another protocol than TLS")
                }
                _ => error,
            }
        })
    }
}

/// Returns the configuration of new handshakes. Sessions of earlier ones are not resumed with it: their tickets are
/// encrypted with other keys, and their clients shall see the certificate.
fn load(identity: &Identity) -> Result<Arc<ServerConfig>, InvalidSetting> {
    let loaded = files::identity(PREFIX, identity)?;
    let expiry = loaded.chain.first().and_then(|certificate| super::expiry::read(certificate));
    let unusable = |error| files::refused(&format!("{PREFIX}-key"), &identity.key, error);
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(loaded.chain, loaded.key)
        .map_err(unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.ticketer = Ticketer::new().map_err(unusable)?;
    let file = identity.certificate.display();
    match expiry {
        Some(expiry) if expiry.is_past() => tracing::warn!(%file, %expiry, "the certificate has expired"),
        Some(expiry) => tracing::info!(%file, %expiry, "certificate loaded"),
        None => tracing::info!(%file, "certificate loaded"),
    }
    Ok(Arc::new(config))
}
