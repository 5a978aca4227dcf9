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
use crate::metrics::{HandshakeFailure, Metrics};

/// The settings of TLS begin so.
const PREFIX: &str = "--tls";

/// The certificate and the key of the gateway, which can be replaced while it runs.
#[derive(Debug)]
pub(crate) struct ServerTls {
    identity: Identity,
    config: RwLock<Arc<ServerConfig>>,
    metrics: Arc<Metrics>,
}

/// Counts a handshake as failed when it is dropped.
struct Handshake<'a>(&'a Metrics, Option<HandshakeFailure>);

impl ServerTls {
    /// Reads the files.
    pub(crate) fn open(identity: &Identity, metrics: Arc<Metrics>) -> Result<Self, InvalidSetting> {
        Ok(Self { identity: identity.clone(), config: RwLock::new(load(identity, &metrics)?), metrics })
    }

    /// Reads the files again, for the handshakes from now on. If they can't be used, the previous ones stay in use.
    pub(crate) fn reload(&self) -> Result<(), InvalidSetting> {
        let config = load(&self.identity, &self.metrics)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Makes the handshake with a client.
    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = self.config.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut handshake = Handshake(&self.metrics, Some(HandshakeFailure::Unfinished));
        let accepted = TlsAcceptor::from(config).accept(stream).await;
        handshake.1 = accepted.as_ref().err().map(failure);
        accepted.map_err(|error| match handshake.1 {
            Some(HandshakeFailure::NotTls) => {
                io::Error::other("the client speaks plain HTTP, or another protocol than TLS")
            }
            _ => error,
        })
    }
}

impl Drop for Handshake<'_> {
    fn drop(&mut self) {
        if let Some(failure) = self.1 {
            self.0.tls.handshake_failed(failure);
        }
    }
}

fn failure(error: &io::Error) -> HandshakeFailure {
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => HandshakeFailure::NotTls,
        Some(rustls::Error::PeerIncompatible(_) | rustls::Error::NoApplicationProtocol) => {
            HandshakeFailure::NothingInCommon
        }
        Some(rustls::Error::AlertReceived(_)) => HandshakeFailure::RefusedByClient,
        Some(_) => HandshakeFailure::Other,
        None => HandshakeFailure::Unfinished,
    }
}

/// Returns the configuration of new handshakes. Sessions of earlier ones are not resumed with it: their tickets are
/// encrypted with other keys, and their clients shall see the certificate.
fn load(identity: &Identity, metrics: &Metrics) -> Result<Arc<ServerConfig>, InvalidSetting> {
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
    metrics.tls.certificate_expires(expiry.map_or(0, super::expiry::Expiry::unix_time));
    let file = identity.certificate.display();
    match expiry {
        Some(expiry) if expiry.is_past() => tracing::warn!(%file, %expiry, "the certificate has expired"),
        Some(expiry) => tracing::info!(%file, %expiry, "certificate loaded"),
        None => tracing::info!(%file, "certificate loaded"),
    }
    Ok(Arc::new(config))
}
