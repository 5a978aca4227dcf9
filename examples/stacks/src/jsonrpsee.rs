//! jsonrpsee's HTTP client, which takes layers.

use jsonrpsee_core::ClientError;
use jsonrpsee_core::client::ClientT;
use jsonrpsee_http_client::{HttpBody, HttpClient, HttpRequest};
use tower::ServiceBuilder;
use tower_auth_refresh::{AuthRefreshLayer, ReplayBody};

/// Builds a client for the server at this URL.
pub fn client(layer: AuthRefreshLayer, url: &str) -> Result<impl ClientT + use<>, ClientError> {
    // [recipe: jsonrpsee]
    let layers = ServiceBuilder::new()
        .layer(layer)
        .map_request(|request: HttpRequest<ReplayBody<HttpBody>>| request.map(HttpBody::new));
    HttpClient::builder().set_http_middleware(layers).build(url)
    // [end]
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use jsonrpsee_core::rpc_params;
    use serde_json::{Value, json};

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, cases, json};

    struct Jsonrpsee {
        world_url: String,
        layer: AuthRefreshLayer,
    }

    #[derive(Default)]
    pub(crate) struct JsonRpc;

    impl Protocol for JsonRpc {
        async fn accept(&self, request: Request<Bytes>) -> Response<Body> {
            let call: Value = serde_json::from_slice(request.body()).unwrap();
            json(&json!({ "jsonrpc": "2.0", "id": call["id"], "result": "added" }))
        }
    }

    impl Stack for Jsonrpsee {
        type Protocol = JsonRpc;

        async fn build(world: &World) -> Self {
            Self { world_url: world.api.origin(), layer: world.layer() }
        }

        async fn call(&self, content: usize) -> Answer {
            let client = client(self.layer.clone(), &self.world_url).unwrap();
            match client.request::<String, _>("add", rpc_params!["a".repeat(content)]).await {
                Ok(_) => Answer::Accepted,
                Err(error) if format!("{error}").contains("401") => Answer::Refused,
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Jsonrpsee: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
