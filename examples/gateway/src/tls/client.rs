//! TLS with the upstream and the authorization server.

use hyper_rustls::ConfigBuilderExt;
use rustls::ClientConfig;
use tower_auth_refresh_http::AuthClient;

use super::{files, provider};
use crate::config::{Identity, InvalidSetting, PeerTls};
use crate::problem::chain;

/// Reads the files of the settings `{prefix}-ca`, `{prefix}-client-cert` and `{prefix}-client-key`.
pub(crate) fn config(prefix: &str, tls: &PeerTls) -> Result<ClientConfig, InvalidSetting> {
    let flag = |name: &str| format!("{prefix}-{name}");
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| InvalidSetting::of(prefix, error))?;
    let config = match &tls.ca {
        Some(file) => config.with_root_certificates(files::roots(&flag("ca"), file)?),
        None => config.with_webpki_roots(),
    };
    let Some(identity) = &tls.identity else { return Ok(config.with_no_client_auth()) };
    let loaded = files::identity(&flag("client"), identity)?;
    config
        .with_client_auth_cert(loaded.chain, loaded.key)
        .map_err(|error| files::refused(&flag("client-key"), &identity.key, error))
}

/// Builds the client for the authorization server from the same files.
pub(crate) fn auth_client(prefix: &str, tls: &PeerTls) -> Result<AuthClient, InvalidSetting> {
    let mut client = AuthClient::rustls_builder();
    if let Some(file) = &tls.ca {
        client = client.only_added_roots().add_roots(&files::read(&format!("{prefix}-ca"), file)?);
    }
    if let Some(Identity { certificate, key }) = &tls.identity {
        let chain = files::read(&format!("{prefix}-client-cert"), certificate)?;
        client = client.client_certificate(&chain, &files::read(&format!("{prefix}-client-key"), key)?);
    }
    client.build().map_err(|error| InvalidSetting::of(prefix, chain(&error)))
}
