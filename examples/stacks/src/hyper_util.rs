//! hyper-util's client, with redirects followed outside of the layer.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{BoxError, Service, ServiceBuilder};
use tower_auth_refresh::AuthRefreshLayer;
use tower_http::follow_redirect::FollowRedirectLayer;

/// Builds a client around a connection pool.
#[must_use]
pub fn client(
    layer: AuthRefreshLayer,
) -> impl Service<Request<Full<Bytes>>, Response = Response<Incoming>, Error: Into<BoxError>, Future: Send> + Clone {
    // [recipe: hyper-util]
    ServiceBuilder::new()
        .layer(FollowRedirectLayer::new())
        .layer(layer)
        .service(Client::builder(TokioExecutor::new()).build_http())
    // [end]
}

#[cfg(test)]
pub(crate) mod tests {
    use tower::util::BoxCloneService;
    use tower::{ServiceExt, util};

    use super::*;
    use crate::support::{Answer, Json, Stack, World, cases};

    pub(crate) struct HyperUtil {
        client: BoxCloneService<Request<Full<Bytes>>, Response<Incoming>, BoxError>,
        url: String,
    }

    impl Stack for HyperUtil {
        type Protocol = Json;

        async fn build(world: &World) -> Self {
            let client = util::MapErr::new(client(world.layer()), Into::into).boxed_clone();
            Self { client, url: world.api.origin() + "/notes" }
        }

        async fn call(&self, content: usize) -> Answer {
            let request = Request::post(&self.url).body(Full::from(vec![b'a'; content])).unwrap();
            match self.client.clone().oneshot(request).await {
                Ok(response) => Answer::of(response.status().as_u16()),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        HyperUtil: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
