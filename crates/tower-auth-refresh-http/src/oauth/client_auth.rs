//! [`ClientAuth`]: the identity of the client at the authorization server.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::byte_serialize;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

/// The client's identity at the authorization server, and its proof (RFC 6749 §2.3).
///
/// `Debug` never shows the secret. It is wiped when the last clone is dropped.
///
/// ```
/// use tower_auth_refresh_http::ClientAuth;
///
/// let auth = ClientAuth::basic("client", "s3cret");
/// assert!(!format!("{auth:?}").contains("s3cret"));
///
/// // TikTok's names for `client_id` and `client_secret`.
/// let auth = ClientAuth::post("client", "s3cret").id_field("client_key");
/// # let _ = auth;
/// ```
#[derive(Clone)]
pub struct ClientAuth {
    id: String,
    proof: Proof,
    id_field: Cow<'static, str>,
    secret_field: Cow<'static, str>,
}

#[derive(Clone)]
enum Proof {
    Basic(Arc<SecretString>),
    Post(Arc<SecretString>),
    Public,
    Anonymous,
}

impl ClientAuth {
    /// HTTP Basic authentication, which every server must support (`client_secret_basic`).
    ///
    /// The id and the secret are form-encoded first (RFC 6749 §2.3.1), a blank as `%20`: decoders of forms and of URLs
    /// read that alike.
    pub fn basic(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self::new(id.into(), Proof::Basic(Arc::new(SecretString::from(secret.into()))))
    }

    /// `client_id` and `client_secret` in the body (`client_secret_post`).
    pub fn post(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self::new(id.into(), Proof::Post(Arc::new(SecretString::from(secret.into()))))
    }

    /// `client_id` alone: a public client, an app on a user's device (`none`).
    pub fn public(id: impl Into<String>) -> Self {
        Self::new(id.into(), Proof::Public)
    }

    /// Nothing at all: the URL or another header identifies the app.
    #[must_use]
    pub fn none() -> Self {
        Self::new(String::new(), Proof::Anonymous)
    }

    fn new(id: String, proof: Proof) -> Self {
        Self { id, proof, id_field: Cow::Borrowed("client_id"), secret_field: Cow::Borrowed("client_secret") }
    }

    #[cfg(feature = "sign-in")]
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Sets the name of the id in the body. Default: `client_id`.
    #[must_use]
    pub fn id_field(mut self, name: impl Into<String>) -> Self {
        self.id_field = Cow::Owned(name.into());
        self
    }

    /// Sets the name of the secret in the body. Default: `client_secret`.
    #[must_use]
    pub fn secret_field(mut self, name: impl Into<String>) -> Self {
        self.secret_field = Cow::Owned(name.into());
        self
    }

    /// Adds to the body what belongs there, and returns the `Authorization` header if there is one.
    pub(crate) fn authenticate(&self, mut add: impl FnMut(&str, &str)) -> Option<HeaderValue> {
        match &self.proof {
            Proof::Basic(secret) => {
                // A blank as `%20`: some servers decode it as in a URL, and leave a `+` as it is.
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
                let credentials = format!("{}:{}", encoded(&self.id), encoded(secret.expose_secret()));
                let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials))).ok()?;
                value.set_sensitive(true);
                return Some(value);
            }
            Proof::Post(secret) => {
                add(&self.id_field, &self.id);
                add(&self.secret_field, secret.expose_secret());
            }
            Proof::Public => add(&self.id_field, &self.id),
            Proof::Anonymous => {}
        }
        None
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.proof {
            Proof::Basic(_) => "client_secret_basic",
            Proof::Post(_) => "client_secret_post",
            Proof::Public => "none",
            Proof::Anonymous => "anonymous",
        };
        f.debug_struct("ClientAuth").field("id", &self.id).field("method", &method).finish_non_exhaustive()
    }
}
