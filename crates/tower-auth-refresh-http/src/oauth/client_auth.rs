use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::{Serializer, byte_serialize};
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

/// Who calls the authorization server, and how he proves it (RFC 6749 §2.3).
///
/// The secret never shows in `Debug`, and is wiped when the last clone is dropped.
///
/// ```
/// use tower_auth_refresh_http::ClientAuth;
///
/// let auth = ClientAuth::basic("client", "s3cret");
/// assert!(!format!("{auth:?}").contains("s3cret"));
/// ```
#[derive(Clone)]
pub struct ClientAuth {
    id: String,
    proof: Proof,
}

#[derive(Clone)]
enum Proof {
    Basic(Arc<SecretString>),
    Post(Arc<SecretString>),
    None,
}

impl ClientAuth {
    /// By HTTP Basic, what every server must support: id and secret form-encoded first, as RFC 6749 §2.3.1 says
    /// (`client_secret_basic`).
    pub fn basic(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), proof: Proof::Basic(Arc::new(SecretString::from(secret.into()))) }
    }

    /// By `client_id` and `client_secret` in the body (`client_secret_post`).
    pub fn post(id: impl Into<String>, secret: impl Into<String>) -> Self {
        Self { id: id.into(), proof: Proof::Post(Arc::new(SecretString::from(secret.into()))) }
    }

    /// Not at all: a public client (an app on a user's device) that only says its `client_id` (`none`).
    pub fn public(id: impl Into<String>) -> Self {
        Self { id: id.into(), proof: Proof::None }
    }

    /// Adds to the form what goes there, and returns the `Authorization` header if there is to be one.
    pub(super) fn authenticate(&self, form: &mut Serializer<'_, String>) -> Option<HeaderValue> {
        match &self.proof {
            Proof::Basic(secret) => {
                let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>();
                let credentials = format!("{}:{}", encoded(&self.id), encoded(secret.expose_secret()));
                let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials))).ok()?;
                value.set_sensitive(true);
                Some(value)
            }
            Proof::Post(secret) => {
                form.append_pair("client_id", &self.id).append_pair("client_secret", secret.expose_secret());
                None
            }
            Proof::None => {
                form.append_pair("client_id", &self.id);
                None
            }
        }
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.proof {
            Proof::Basic(_) => "client_secret_basic",
            Proof::Post(_) => "client_secret_post",
            Proof::None => "none",
        };
        f.debug_struct("ClientAuth").field("id", &self.id).field("method", &method).finish_non_exhaustive()
    }
}
