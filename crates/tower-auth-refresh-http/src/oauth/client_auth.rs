//! [`ClientAuth`]: the identity of the client at the authorization server.

use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use form_urlencoded::byte_serialize;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};

use crate::error::AuthServerError;

/// The client's identity at the authorization server, and its proof (RFC 6749 §2.3).
///
/// `Debug` never shows the secret. It is wiped when the last clone is dropped.
///
/// Without a secret that is sent: a signature ([`private_key_jwt`](Self::private_key_jwt), crate feature
/// `private-key-jwt`), or the certificate of the connection ([`tls`](Self::tls)).
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
    #[cfg(feature = "private-key-jwt")]
    Assertion(Arc<super::assertion::Assertion>),
    Tls,
    Public,
    Anonymous,
}

/// What a request carries to authenticate the client.
#[derive(Default)]
pub(crate) struct Authentication {
    /// Parameters of a form, or members of an object.
    pub(crate) params: Vec<(String, String)>,
    /// The `Authorization` header.
    pub(crate) authorization: Option<HeaderValue>,
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

    /// A signed assertion, fresh for each call (`private_key_jwt`, RFC 7523).
    ///
    /// The assertion names the client and the audience, has a random `jti`, and is valid for a minute. The audience is
    /// the issuer of the server, as RFC 7523bis has it
    /// ([`AuthorizationServer::issuer`](crate::AuthorizationServer::issuer)); an older server may expect the URL of its
    /// token endpoint.
    ///
    /// ```
    /// # fn example(pem: &[u8]) -> Result<(), tower_auth_refresh_http::InvalidKey> {
    /// use tower_auth_refresh_http::{ClientAuth, JwtSigner};
    ///
    /// let signer = JwtSigner::from_pem(pem)?.key_id("2026-11");
    /// let auth = ClientAuth::private_key_jwt("client", "https://auth.example.com", signer);
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "private-key-jwt")]
    #[cfg_attr(docsrs, doc(cfg(feature = "private-key-jwt")))]
    pub fn private_key_jwt(
        id: impl Into<String>,
        audience: impl Into<String>,
        signer: super::assertion::JwtSigner,
    ) -> Self {
        let assertion = super::assertion::Assertion::new(audience.into(), signer);
        Self::new(id.into(), Proof::Assertion(Arc::new(assertion)))
    }

    /// `client_id`, and the client certificate of the connection (`tls_client_auth`, `self_signed_tls_client_auth`; RFC
    /// 8705).
    ///
    /// The [`AuthClient`](crate::AuthClient) has to present the certificate, and the URL is that of an
    /// [alias](crate::AuthorizationServer::mtls_endpoints) if the server has any.
    pub fn tls(id: impl Into<String>) -> Self {
        Self::new(id.into(), Proof::Tls)
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

    /// Returns what the next request carries. A signature is made anew each time.
    pub(crate) fn authenticate(&self) -> impl Future<Output = Result<Authentication, AuthServerError>> + Send + use<> {
        let this = self.clone();
        async move {
            let mut with = Authentication::default();
            let mut add = |name: &str, value: &str| with.params.push((name.to_owned(), value.to_owned()));
            match &this.proof {
                Proof::Basic(secret) => with.authorization = basic(&this.id, secret.expose_secret()),
                Proof::Post(secret) => {
                    add(&this.id_field, &this.id);
                    add(&this.secret_field, secret.expose_secret());
                }
                #[cfg(feature = "private-key-jwt")]
                Proof::Assertion(assertion) => {
                    let signed = assertion.sign(&this.id).await?;
                    add(&this.id_field, &this.id);
                    add("client_assertion_type", super::assertion::ASSERTION_TYPE);
                    add("client_assertion", &signed);
                }
                Proof::Tls | Proof::Public => add(&this.id_field, &this.id),
                Proof::Anonymous => {}
            }
            Ok(with)
        }
    }
}

/// The `Authorization` header of HTTP Basic authentication.
fn basic(id: &str, secret: &str) -> Option<HeaderValue> {
    // A blank as `%20`: some servers decode it as in a URL, and leave a `+` as it is.
    let encoded = |text: &str| byte_serialize(text.as_bytes()).collect::<String>().replace('+', "%20");
    let credentials = format!("{}:{}", encoded(id), encoded(secret));
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(credentials))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.proof {
            Proof::Basic(_) => "client_secret_basic",
            Proof::Post(_) => "client_secret_post",
            #[cfg(feature = "private-key-jwt")]
            Proof::Assertion(_) => "private_key_jwt",
            Proof::Tls => "tls_client_auth",
            Proof::Public => "none",
            Proof::Anonymous => "anonymous",
        };
        f.debug_struct("ClientAuth").field("id", &self.id).field("method", &method).finish_non_exhaustive()
    }
}
