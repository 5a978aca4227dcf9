//! A client that progenitor generates from an `OpenAPI` document, over the handle of reqwest.

use progenitor::progenitor_client::{ClientHooks, ClientInfo, OperationInfo};
use tower_auth_refresh_reqwest::{ApiClient, reqwest};

use notes::Client;

/// The generated code.
#[expect(missing_docs, reason = "generated")]
pub mod notes {
    progenitor::generate_api!(spec = "openapi/notes.json", inner_type = tower_auth_refresh_reqwest::ApiClient);
}

// [recipe: progenitor]
impl ClientHooks<ApiClient> for Client {
    async fn exec(&self, request: reqwest::Request, _: &OperationInfo) -> reqwest::Result<reqwest::Response> {
        self.inner().execute(request).await
    }
}
// [end]

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::{Request, Response};
    use progenitor::progenitor_client::Error;

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, cases, json};

    #[derive(Default)]
    pub(crate) struct Notes;

    impl Protocol for Notes {
        async fn accept(&self, request: Request<Bytes>) -> Response<Body> {
            json(&serde_json::from_slice(request.body()).unwrap())
        }
    }

    impl Stack for Client {
        type Protocol = Notes;

        async fn build(world: &World) -> Self {
            let api = crate::reqwest::client(world.session.clone(), world.origin()).unwrap();
            Client::new(&world.api.origin(), api)
        }

        async fn call(&self, content: usize) -> Answer {
            match self.add_note(&notes::types::Note { text: "a".repeat(content) }).await {
                Ok(note) => {
                    assert_eq!(note.text.len(), content);
                    Answer::Accepted
                }
                Err(Error::UnexpectedResponse(response)) => Answer::of(response.status().as_u16()),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Client: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
