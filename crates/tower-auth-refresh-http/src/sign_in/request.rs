//! [`SignInRequest`]: what both kinds of sign-in ask for, and the exchange of a grant for tokens.

#[cfg(not(feature = "oidc"))]
use std::convert::Infallible;
#[cfg(not(feature = "oidc"))]
use std::future::Ready;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::timeout;
use tower_auth_refresh::Tokens;

use super::SignedIn;
use super::error::SignInError;
#[cfg(feature = "oidc")]
use super::id_token::IdTokenCheck;
#[cfg(feature = "oidc")]
pub(super) use super::id_token::{Issuer, Keys};
use crate::answer::Answer;
use crate::classify::{Call, Classifier};
use crate::client::AuthClient;
use crate::cookie::ReceivedCookies;
use crate::error::AuthServerError;
use crate::fields::{Granted, TokenFields};
use crate::oauth::{AuthorizationServer, ClientAuth, OAuthCall, OAuthRevoke, UserParams};

/// The time-out of the revocation of tokens whose ID token is refused. The user waits for it.
const REVOKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Without the feature there are none.
#[cfg(not(feature = "oidc"))]
pub(super) type Issuer = Infallible;
#[cfg(not(feature = "oidc"))]
pub(super) type Keys = Infallible;

/// The parts that both kinds of sign-in share.
#[derive(Clone, Debug)]
pub(super) struct SignInRequest {
    pub(super) client: AuthClient,
    pub(super) server: AuthorizationServer,
    pub(super) auth: ClientAuth,
    pub(super) scope: Option<String>,
    pub(super) resources: Vec<String>,
    pub(super) params: UserParams,
    classifier: Classifier,
    #[cfg(feature = "oidc")]
    clock_tolerance: Duration,
    #[cfg(feature = "oidc")]
    trusted_audiences: Vec<String>,
}

impl SignInRequest {
    pub(super) fn new(client: AuthClient, server: &AuthorizationServer, auth: ClientAuth) -> Result<Self, SignInError> {
        if auth.id().is_empty() {
            return Err(SignInError::misconfigured("a sign-in needs a client id"));
        }
        Ok(Self {
            client,
            server: server.clone(),
            auth,
            scope: None,
            resources: Vec::new(),
            params: UserParams::default(),
            classifier: Classifier::new(Call::OAuth),
            #[cfg(feature = "oidc")]
            clock_tolerance: Duration::from_secs(60),
            #[cfg(feature = "oidc")]
            trusted_audiences: Vec::new(),
        })
    }

    pub(super) fn fields(&mut self, fields: TokenFields) {
        self.classifier.fields(fields);
    }

    #[cfg(feature = "oidc")]
    pub(super) fn clock_tolerance(&mut self, tolerance: Duration) {
        self.clock_tolerance = tolerance;
    }

    #[cfg(feature = "oidc")]
    pub(super) fn trusted_audience(&mut self, audience: String) {
        self.trusted_audiences.push(audience);
    }

    /// Returns `true` if the scope `openid` is requested: the answer then holds an ID token.
    pub(super) fn is_oidc(&self) -> bool {
        self.scope.as_deref().unwrap_or_default().split(' ').any(|scope| scope == "openid")
    }

    /// Refuses parameters that the sign-in sets itself, and an ID token that couldn't be validated.
    ///
    /// Returns the issuer of the ID token, if there has to be one.
    pub(super) fn check(&self, reserved: &[&str]) -> Result<Option<Issuer>, SignInError> {
        if self.params.iter().any(|(name, _)| reserved.contains(&name)) {
            return Err(SignInError::misconfigured("a parameter is one that the sign-in sets itself"));
        }
        if self.is_oidc() { self.issuer().map(Some) } else { Ok(None) }
    }

    /// A call of an endpoint, with the resources (RFC 8707 §2.2).
    pub(super) fn call(&self, url: &str) -> Result<OAuthCall, SignInError> {
        let mut call = OAuthCall::new(self.client.clone(), url, self.auth.clone()).map_err(|invalid| {
            SignInError::misconfigured("no secret may be sent to an endpoint of the server").with_source(invalid)
        })?;
        for resource in &self.resources {
            call.param("resource", resource);
        }
        Ok(call)
    }

    /// Makes the call of the token endpoint.
    pub(super) fn token_call(&self) -> Result<OAuthCall, SignInError> {
        self.call(self.server.token_endpoint())
    }

    /// Reads the answer of the token endpoint.
    pub(super) fn granted(&self, answer: Answer) -> Result<Granted, AuthServerError> {
        self.classifier.tokens(answer, ReceivedCookies::default(), None)
    }

    /// Reads the answer of the device authorization endpoint.
    pub(super) fn members(&self, answer: Answer) -> Result<Map<String, Value>, AuthServerError> {
        self.classifier.members(answer)
    }

    /// Validates the ID token, if there has to be one. If it isn't valid, the tokens are revoked.
    pub(super) async fn signed_in(
        &self,
        granted: Granted,
        nonce: Option<&str>,
        keys: Option<&Keys>,
    ) -> Result<SignedIn, SignInError> {
        let claims = match keys {
            Some(keys) => self.claims(&granted, nonce, keys).await,
            None => Ok(Map::new()),
        };
        let tokens = granted.into_tokens();
        match claims {
            Ok(claims) => Ok(SignedIn { tokens, claims }),
            Err(refused) => {
                self.revoke(&tokens).await;
                Err(refused)
            }
        }
    }

    /// Revokes tokens that no caller gets, if the server has an endpoint for that.
    async fn revoke(&self, tokens: &Tokens) {
        let Some(endpoint) = self.server.revocation_endpoint() else { return };
        if let Ok(revoke) = OAuthRevoke::new(self.client.clone(), endpoint, self.auth.clone()) {
            let _ = timeout(REVOKE_TIMEOUT, revoke.revoke(tokens)).await;
        }
    }

    /// Requests the keys of the issuer, before anything is asked for.
    pub(super) async fn keys(&self, issuer: Option<Issuer>) -> Result<Option<Keys>, SignInError> {
        match issuer {
            Some(issuer) => self.keys_of(issuer).await.map(Some),
            None => Ok(None),
        }
    }
}

#[cfg(feature = "oidc")]
impl SignInRequest {
    fn issuer(&self) -> Result<Issuer, SignInError> {
        Issuer::of(&self.server, &self.client)
    }

    async fn keys_of(&self, issuer: Issuer) -> Result<Keys, SignInError> {
        issuer.keys(&self.client).await
    }

    async fn claims(
        &self,
        granted: &Granted,
        nonce: Option<&str>,
        keys: &Keys,
    ) -> Result<Map<String, Value>, SignInError> {
        let check = IdTokenCheck {
            client: &self.client,
            keys,
            client_id: self.auth.id(),
            trusted_audiences: &self.trusted_audiences,
            nonce,
            clock_tolerance: self.clock_tolerance,
        };
        check.claims(granted).await
    }
}

#[cfg(not(feature = "oidc"))]
#[expect(
    clippy::unused_self,
    clippy::trivially_copy_pass_by_ref,
    reason = "with the feature, the ID token is checked against the request"
)]
impl SignInRequest {
    fn issuer(&self) -> Result<Issuer, SignInError> {
        Err(SignInError::misconfigured("the scope openid needs the crate feature oidc"))
    }

    fn keys_of(&self, issuer: Issuer) -> Ready<Result<Keys, SignInError>> {
        match issuer {}
    }

    fn claims(&self, _: &Granted, _: Option<&str>, keys: &Keys) -> Ready<Result<Map<String, Value>, SignInError>> {
        match *keys {}
    }
}
