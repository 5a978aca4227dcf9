//! kube, whose default stack stays: TLS, proxies, compression, retries.

use futures_util::FutureExt;
use http::Request;
use kube::client::{Body, ClientBuilder};
use kube::{Client, Config};
use tower::buffer::BufferLayer;
use tower::util::MapRequestLayer;
use tower_auth_refresh::{AuthRefreshLayer, Origin, Origins, ReplayBody, Session};

/// Builds a client of the cluster in the configuration.
#[expect(clippy::missing_panics_doc, reason = "all bodies that an app can make are in memory")]
pub fn client(session: Session, cluster: Origin, config: Config) -> kube::Result<Client> {
    // [recipe: kube]
    let layer = AuthRefreshLayer::new(session, Origins::assume(cluster))
        .one_piece(|body: &Body| body.try_clone()?.collect_bytes().now_or_never()?.ok());
    let whole = |body: ReplayBody<Body>| Body::from(body.try_into_bytes().expect("kube's bodies are in memory"));
    let builder = ClientBuilder::try_from(config)?
        .with_layer(&BufferLayer::new(1024))
        .with_layer(&MapRequestLayer::new(move |request: Request<_>| request.map(whole)))
        .with_layer(&layer);
    Ok(builder.build())
    // [end]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use bytes::Bytes;
    use http::Response;
    use http::header::CONTENT_TYPE;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use kube::api::PostParams;

    use super::*;
    use crate::support::{self, Answer, Protocol, Stack, World, body, cases, json};

    #[derive(Default)]
    pub(crate) struct ApiServer;

    impl Protocol for ApiServer {
        async fn accept(&self, request: Request<Bytes>) -> Response<support::Body> {
            assert_eq!(request.uri().path(), "/api/v1/namespaces/default/configmaps");
            let created: serde_json::Value = serde_json::from_slice(request.body()).unwrap();
            json(&created)
        }

        fn refuse(&self, mut refusal: Response<support::Body>) -> Response<support::Body> {
            refusal.headers_mut().insert(CONTENT_TYPE, "application/json".parse().unwrap());
            let status =
                r#"{"kind":"Status","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}"#;
            refusal.map(|_| body(status))
        }
    }

    impl Stack for Client {
        type Protocol = ApiServer;

        async fn build(world: &World) -> Self {
            let config = Config::new(world.api.origin().parse().unwrap());
            client(world.session.clone(), world.origin(), config).unwrap()
        }

        async fn call(&self, content: usize) -> Answer {
            let data = BTreeMap::from([("text".to_owned(), "a".repeat(content))]);
            let map = ConfigMap { data: Some(data), ..ConfigMap::default() };
            match Api::<ConfigMap>::default_namespaced(self.clone()).create(&PostParams::default(), &map).await {
                Ok(created) => {
                    assert_eq!(created, map);
                    Answer::Accepted
                }
                Err(kube::Error::Api(status)) => Answer::of(status.code),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Client: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
