//! [`Issuer`] and [`IdTokenCheck`]: the validation of an ID token (OpenID Connect Core §3.1.3.7), by `openidconnect`.

use std::error::Error;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use http::Method;
use openidconnect::core::{CoreIdToken, CoreIdTokenVerifier, CoreJsonWebKeySet, CoreJwsSigningAlgorithm};
use openidconnect::{
    AccessToken, AccessTokenHash, ClaimsVerificationError, ClientId, IssuerUrl, Nonce, NonceVerifier,
    SignatureVerificationError,
};
use serde_json::{Map, Value};

use super::error::{SignInError, SignInErrorKind};
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::endpoint::Endpoint;
use crate::error::AuthServerError;
use crate::fields::{Granted, jwt_claims};
use crate::oauth::AuthorizationServer;

/// The algorithms of asymmetric keys. A symmetric one would be checked with a secret that a public client doesn't have.
const ALGORITHMS: [CoreJwsSigningAlgorithm; 9] = [
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha256,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha384,
    CoreJwsSigningAlgorithm::RsaSsaPkcs1V15Sha512,
    CoreJwsSigningAlgorithm::RsaSsaPssSha256,
    CoreJwsSigningAlgorithm::RsaSsaPssSha384,
    CoreJwsSigningAlgorithm::RsaSsaPssSha512,
    CoreJwsSigningAlgorithm::EcdsaP256Sha256,
    CoreJwsSigningAlgorithm::EcdsaP384Sha384,
    CoreJwsSigningAlgorithm::EdDsa,
];

/// The issuer of ID tokens, and where it publishes its keys.
pub(super) struct Issuer {
    url: IssuerUrl,
    jwks: Endpoint,
}

impl Issuer {
    pub(super) fn of(server: &AuthorizationServer, client: &AuthClient) -> Result<Self, SignInError> {
        let url = IssuerUrl::new(server.issuer().to_owned())
            .map_err(|error| SignInError::misconfigured("the issuer is no URL").with_source(error))?;
        let jwks = server.member("jwks_uri").and_then(Value::as_str);
        let jwks = jwks.ok_or_else(|| SignInError::misconfigured("the server's metadata has no jwks_uri"))?;
        let jwks = client.endpoint(jwks).map_err(|error| {
            SignInError::misconfigured("the server's jwks_uri is no URL for secrets").with_source(error)
        })?;
        Ok(Self { url, jwks })
    }

    /// Requests the keys. They rotate, so that each sign-in requests them.
    pub(super) async fn keys(self, client: &AuthClient) -> Result<Keys, SignInError> {
        Ok(Keys { set: self.request(client).await?, issuer: self })
    }

    async fn request(&self, client: &AuthClient) -> Result<CoreJsonWebKeySet, SignInError> {
        let keys = async {
            let answer = client.send(AuthClient::request(Method::GET, &self.jwks)).await?;
            let members = Classifier::new(Call::OAuth).members(answer)?;
            serde_json::from_value(Value::Object(members))
                .map_err(|error| AuthServerError::misconfigured("the answer is no set of keys").with_source(error))
        };
        Ok(keys.await.map_err(|error: AuthServerError| error.of_repeatable_call().at(&self.jwks))?)
    }
}

/// The keys of an issuer, requested before any code is spent.
pub(super) struct Keys {
    issuer: Issuer,
    set: CoreJsonWebKeySet,
}

/// What an ID token is checked against.
pub(super) struct IdTokenCheck<'a> {
    pub(super) client: &'a AuthClient,
    pub(super) keys: &'a Keys,
    pub(super) client_id: &'a str,
    pub(super) trusted_audiences: &'a [String],
    /// `None` for the device grant, which has none.
    pub(super) nonce: Option<&'a str>,
    pub(super) clock_tolerance: Duration,
}

impl IdTokenCheck<'_> {
    /// Returns the claims of the ID token in an answer, once they are validated.
    pub(super) async fn claims(&self, granted: &Granted) -> Result<Map<String, Value>, SignInError> {
        let text = granted.extra.get("id_token").and_then(Value::as_str);
        let text = text.ok_or_else(|| invalid("the answer holds no ID token"))?;
        let access_token = granted.access.expose_secret();
        let Keys { issuer, set } = self.keys;
        match self.validate(text, set.clone(), access_token) {
            // The key is newer than the sign-in.
            Err(error) if is_unknown_key(&error) => {
                self.validate(text, issuer.request(self.client).await?, access_token)?;
            }
            validated => validated?,
        }
        match jwt_claims(text) {
            Some(Value::Object(claims)) => Ok(claims),
            _ => Err(invalid("the ID token can't be read")),
        }
    }

    fn validate(&self, text: &str, keys: CoreJsonWebKeySet, access_token: &str) -> Result<(), SignInError> {
        let token = CoreIdToken::from_str(text).map_err(|_| invalid("the ID token can't be read"))?;
        let issuer = self.keys.issuer.url.clone();
        let (now, tolerance) = (SystemTime::now(), self.clock_tolerance);
        let earliest = now.checked_sub(tolerance).unwrap_or(SystemTime::UNIX_EPOCH);
        let verifier = CoreIdTokenVerifier::new_public_client(ClientId::new(self.client_id.to_owned()), issuer, keys)
            .set_allowed_algs(ALGORITHMS)
            .set_other_audience_verifier_fn(|audience| self.trusted_audiences.contains(audience))
            .set_time_fn(move || earliest.into())
            .set_issue_time_verifier_fn(move |issued| match now.checked_add(tolerance) {
                Some(latest) if SystemTime::from(issued) > latest => Err("it was issued in the future".to_owned()),
                _ => Ok(()),
            });
        let nonce = self.nonce.map(|nonce| Nonce::new(nonce.to_owned()));
        let nonce_check = |found: Option<&Nonce>| match &nonce {
            // The comparison of secrets takes the same time wherever they differ.
            Some(expected) => NonceVerifier::verify(expected, found),
            None => Ok(()),
        };
        let claims = token
            .claims(&verifier, nonce_check)
            .map_err(|error| invalid("the ID token isn't valid for this sign-in").with_source(error))?;
        if claims.authorized_party().is_some_and(|party| party.as_str() != self.client_id) {
            return Err(invalid("the ID token was issued to another client"));
        }
        let Some(expected) = claims.access_token_hash() else { return Ok(()) };
        let hash = (token.signing_alg().ok().zip(token.signing_key(&verifier).ok())).and_then(|(algorithm, key)| {
            AccessTokenHash::from_token(&AccessToken::new(access_token.to_owned()), algorithm, key).ok()
        });
        if hash.as_ref() == Some(expected) {
            Ok(())
        } else {
            Err(invalid("the ID token belongs to another access token"))
        }
    }
}

/// Returns `true` if the server has no key for the signature, among those that were requested.
fn is_unknown_key(error: &SignInError) -> bool {
    matches!(
        error.source().and_then(|source| source.downcast_ref()),
        Some(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey))
    )
}

fn invalid(problem: &'static str) -> SignInError {
    SignInError::new(SignInErrorKind::InvalidIdToken, problem)
}
