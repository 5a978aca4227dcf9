//! octocrab, around hyper-util's client.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::USER_AGENT;
use http::{HeaderValue, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use octocrab::service::middleware::base_uri::BaseUriLayer;
use octocrab::service::middleware::extra_headers::ExtraHeadersLayer;
use octocrab::{AuthState, Octocrab, OctocrabBuilder};
use tower::ServiceBuilder;
use tower_auth_refresh::AuthRefreshLayer;
use tower_http::follow_redirect::FollowRedirectLayer;

/// Builds a client of the GitHub API at this URI.
pub fn client(layer: AuthRefreshLayer, api: Uri) -> Result<Octocrab, Infallible> {
    // [recipe: octocrab]
    let service = ServiceBuilder::new()
        .layer(BaseUriLayer::new(api))
        .layer(ExtraHeadersLayer::new(Arc::new(vec![(USER_AGENT, HeaderValue::from_static("acme"))])))
        .layer(FollowRedirectLayer::new())
        .layer(layer)
        .service(Client::builder(TokioExecutor::new()).build_http());
    OctocrabBuilder::new_empty().with_service(service).with_auth(AuthState::None).build()
    // [end]
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use serde_json::{Value, json};

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, body, cases, json};

    #[derive(Default)]
    pub(crate) struct GitHub;

    impl Protocol for GitHub {
        async fn accept(&self, request: Request<Bytes>) -> Response<Body> {
            assert_eq!(request.headers()[USER_AGENT], "acme");
            json(&json!({}))
        }

        fn refuse(&self, refusal: Response<Body>) -> Response<Body> {
            refusal.map(|_| body(r#"{"message":"Bad credentials"}"#))
        }
    }

    impl Stack for Octocrab {
        type Protocol = GitHub;

        async fn build(world: &World) -> Self {
            client(world.layer(), world.api.origin().parse().unwrap()).unwrap()
        }

        async fn call(&self, content: usize) -> Answer {
            let issue = json!({ "title": "a".repeat(content) });
            match self.post::<_, Value>("/repos/acme/app/issues", Some(&issue)).await {
                Ok(_) => Answer::Accepted,
                Err(octocrab::Error::GitHub { source, .. }) => Answer::of(source.status_code.as_u16()),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Octocrab: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
