//! A sign-in by `oauth2`, whose tokens the session takes over.

use oauth2::basic::BasicClient;
use oauth2::{AuthorizationCode, EndpointNotSet, EndpointSet, PkceCodeVerifier};
use tower::BoxError;
use tower_auth_refresh::Session;
use tower_auth_refresh_http::{AuthClient, TokenFields};

/// A client whose token endpoint is set.
pub type OAuthClient = BasicClient<EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointNotSet, EndpointSet>;

/// Exchanges an authorization code, and signs the user in.
pub async fn sign_in(
    session: &Session,
    http: &AuthClient,
    client: &OAuthClient,
    code: AuthorizationCode,
    verifier: PkceCodeVerifier,
) -> Result<(), BoxError> {
    // [recipe: oauth2]
    let exchange = client.exchange_code(code).set_pkce_verifier(verifier);
    let response = exchange.request_async(&|request| http.call(request)).await?;
    session.sign_in(TokenFields::default().tokens(&response)?).await?;
    // [end]
    Ok(())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;
    use oauth2::{ClientId, TokenUrl};
    use serde_json::json;
    use tower_auth_refresh_testkit::TestKit;

    use super::*;
    use crate::hyper_util::tests::HyperUtil;
    use crate::support::{Answer, Body, Protocol, Stack, World, cases, json};

    struct OAuth2(HyperUtil);

    impl Stack for OAuth2 {
        type Protocol = TokenEndpoint;

        async fn build(world: &World) -> Self {
            let client = BasicClient::new(ClientId::new("app".into()))
                .set_token_uri(TokenUrl::new(world.api.origin() + "/token").unwrap());
            let http = AuthClient::new(Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>());
            let (code, verifier) = (AuthorizationCode::new("c1".into()), PkceCodeVerifier::new("v".repeat(43)));
            let before = world.session.tokens();
            sign_in(&world.session, &http, &client, code, verifier).await.unwrap();
            assert_ne!(world.session.tokens().access_token(), before.access_token());
            Self(HyperUtil::build(world).await)
        }

        async fn call(&self, content: usize) -> Answer {
            self.0.call(content).await
        }
    }

    cases!(
        OAuth2: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );

    /// An API with a token endpoint beside it.
    #[derive(Default)]
    pub(crate) struct TokenEndpoint;

    impl Protocol for TokenEndpoint {
        fn open(&self, kit: &TestKit, request: &Request<Bytes>) -> Option<Response<Body>> {
            if request.uri().path() != "/token" {
                return None;
            }
            assert!(request.body().starts_with(b"grant_type=authorization_code&code=c1&code_verifier="));
            let pair = kit.sign_in("ada");
            Some(json(&json!({
                "access_token": pair.access_token,
                "refresh_token": pair.refresh_token,
                "token_type": "bearer",
                "expires_in": pair.expires_in,
            })))
        }

        async fn accept(&self, _: Request<Bytes>) -> Response<Body> {
            json(&json!({}))
        }
    }
}
