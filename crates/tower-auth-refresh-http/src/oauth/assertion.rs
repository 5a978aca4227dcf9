//! [`JwtSigner`]: a key that signs client assertions (RFC 7523), here or elsewhere.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::iter::successors;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde_json::json;
use tower::BoxError;
use tower_auth_refresh::{RefreshError, RefreshErrorKind};

use crate::error::{AuthServerError, Kind, source_of};

/// The value of `client_assertion_type`.
pub(crate) const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

/// The lifetime of an assertion.
const LIFETIME: Duration = Duration::from_secs(60);

/// A key that signs client assertions, for [`ClientAuth::private_key_jwt`](super::ClientAuth::private_key_jwt).
///
/// `Debug` shows the algorithm and the key's identifier.
#[derive(Clone)]
pub struct JwtSigner {
    algorithm: &'static str,
    key_id: Option<String>,
    sign: Arc<Sign>,
}

type Sign = dyn Fn(Vec<u8>) -> Signing + Send + Sync;
type Signing = Pin<Box<dyn Future<Output = Result<Vec<u8>, BoxError>> + Send>>;

impl JwtSigner {
    /// Signs with a function: of a hardware module, an agent or a key service.
    ///
    /// `sign` is given the input of the signature, and returns the bytes of the signature as JWS has them (RFC 7518 §3):
    /// for `ES256` the two numbers of 32 bytes each, without ASN.1.
    ///
    /// If it fails, the call wasn't made: it is unavailable, and tried again. The same if it takes longer than the
    /// client's [time-out](crate::AuthClient::timeout), which the call has in addition. If the failure can't pass, return
    /// a [`RefreshError::misconfigured`]: the call is not tried again, and a [`DeviceSignIn`](crate::DeviceSignIn) ends.
    /// The first `RefreshError` among the error and its sources decides.
    ///
    /// ```
    /// # async fn of_the_module(_: Vec<u8>) -> Result<Vec<u8>, tower::BoxError> { Ok(Vec::new()) }
    /// use tower_auth_refresh_http::JwtSigner;
    ///
    /// let signer = JwtSigner::new("ES256", |input: Vec<u8>| async move { of_the_module(input).await });
    /// # let _ = signer;
    /// ```
    pub fn new<F, S>(algorithm: &'static str, sign: F) -> Self
    where
        F: Fn(Vec<u8>) -> S + Send + Sync + 'static,
        S: Future<Output = Result<Vec<u8>, BoxError>> + Send + 'static,
    {
        Self { algorithm, key_id: None, sign: Arc::new(move |input| Box::pin(sign(input))) }
    }

    /// Reads a private key in PEM: `ES256`, `ES384`, `EdDSA` (Ed25519) or `RS256`, by the kind of the key.
    ///
    /// The format is PKCS#8 (`BEGIN PRIVATE KEY`), or PKCS#1 for RSA. `openssl pkcs8 -topk8 -nocrypt` converts others. An
    /// RSA key has 2048 to 4096 bits.
    ///
    /// # Errors
    ///
    /// [`InvalidKey`] if the text holds no key, or one of another kind or format.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidKey> {
        match PrivateKeyDer::from_pem_slice(pem).map_err(|_| InvalidKey("the text holds no private key in PEM"))? {
            PrivateKeyDer::Pkcs8(der) => Self::from_pkcs8(der.secret_pkcs8_der()),
            PrivateKeyDer::Pkcs1(der) => RsaKeyPair::from_der(der.secret_pkcs1_der())
                .map(Self::rs256)
                .map_err(|_| InvalidKey("the RSA key is damaged, or hasn't 2048 to 4096 bits")),
            _ => Err(InvalidKey("the key isn't in PKCS#8 format")),
        }
    }

    fn from_pkcs8(der: &[u8]) -> Result<Self, InvalidKey> {
        // The algorithm is in the key: at most one of them accepts it.
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self::here("EdDSA", move |input| Ok(key.sign(input).as_ref().to_vec())));
        }
        for (name, algorithm) in
            [("ES256", &ECDSA_P256_SHA256_FIXED_SIGNING), ("ES384", &ECDSA_P384_SHA384_FIXED_SIGNING)]
        {
            if let Ok(key) = EcdsaKeyPair::from_pkcs8(algorithm, der, &SystemRandom::new()) {
                return Ok(Self::here(name, move |input| {
                    key.sign(&SystemRandom::new(), input)
                        .map(|signature| signature.as_ref().to_vec())
                        .map_err(|_| "the key could not sign".into())
                }));
            }
        }
        let key = RsaKeyPair::from_pkcs8(der);
        key.map(Self::rs256).map_err(|_| InvalidKey("the key isn't one of P-256, P-384, Ed25519 or RSA"))
    }

    fn rs256(key: RsaKeyPair) -> Self {
        Self::here("RS256", move |input| {
            let mut signature = vec![0; key.public().modulus_len()];
            key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), input, &mut signature)
                .map_err(|_| "the key could not sign")?;
            Ok(signature)
        })
    }

    fn here(
        algorithm: &'static str,
        sign: impl Fn(&[u8]) -> Result<Vec<u8>, BoxError> + Send + Sync + 'static,
    ) -> Self {
        Self::new(algorithm, move |input: Vec<u8>| std::future::ready(sign(&input)))
    }

    /// Names the key (`kid`), for a server that knows several keys of the client. Default: none.
    #[must_use]
    pub fn key_id(mut self, id: impl Into<String>) -> Self {
        self.key_id = Some(id.into());
        self
    }
}

impl fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSigner")
            .field("algorithm", &self.algorithm)
            .field("key_id", &self.key_id)
            .finish_non_exhaustive()
    }
}

/// A private key that can't be used. The message doesn't repeat the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidKey(&'static str);

impl fmt::Display for InvalidKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for InvalidKey {}

/// The making of assertions for one audience.
pub(crate) struct Assertion {
    audience: String,
    signer: JwtSigner,
}

impl Assertion {
    pub(crate) fn new(audience: String, signer: JwtSigner) -> Self {
        Self { audience, signer }
    }

    /// Signs an assertion of this client.
    pub(crate) async fn sign(&self, client_id: &str) -> Result<String, AuthServerError> {
        let mut id = [0; 16];
        SystemRandom::new().fill(&mut id).map_err(|_| failed("the system has no random numbers".into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut header = json!({ "alg": self.signer.algorithm, "typ": "JWT" });
        if let Some(key_id) = &self.signer.key_id {
            header["kid"] = json!(key_id);
        }
        let claims = json!({
            "iss": client_id,
            "sub": client_id,
            "aud": self.audience,
            "jti": URL_SAFE_NO_PAD.encode(id),
            "iat": now.as_secs(),
            "exp": (now + LIFETIME).as_secs(),
        });
        let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let input = format!("{}.{}", part(header), part(claims));
        let signature = (self.signer.sign)(input.clone().into_bytes()).await.map_err(failed)?;
        Ok(format!("{input}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// The error of a call whose assertion could not be signed. Nothing was sent.
fn failed(source: BoxError) -> AuthServerError {
    let of_signer = successors(Some(&*source as &(dyn Error + 'static)), |error| source_of(*error))
        .find_map(|error| error.downcast_ref::<RefreshError>());
    let kind = match of_signer.map(RefreshError::kind) {
        Some(RefreshErrorKind::Misconfigured | RefreshErrorKind::Rejected) => Kind::Misconfigured,
        _ => Kind::Unavailable,
    };
    let retry_after = of_signer.and_then(RefreshError::retry_after);
    let failed = AuthServerError::new(kind, "the client assertion could not be signed");
    failed.with_retry_after(retry_after).with_source(source)
}
