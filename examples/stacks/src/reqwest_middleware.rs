//! reqwest-middleware, with a middleware of its own.

use reqwest_middleware::{ClientBuilder, ClientWithMiddleware};
use tower_auth_refresh_reqwest::{AuthRefreshMiddleware, Origin, ReqwestService, Session, reqwest};

/// Builds a client of the API at this origin.
pub fn client(session: Session, api: Origin) -> reqwest::Result<ClientWithMiddleware> {
    // [recipe: reqwest-middleware]
    let http = ReqwestService::new(reqwest::Client::builder())?;
    let client = ClientBuilder::new(http.client().clone()).with(AuthRefreshMiddleware::new(session, api)).build();
    // [end]
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::{Answer, Json, Stack, World, cases};

    struct Middleware {
        client: ClientWithMiddleware,
        url: String,
    }

    impl Stack for Middleware {
        type Protocol = Json;

        async fn build(world: &World) -> Self {
            let client = client(world.session.clone(), world.origin()).unwrap();
            Self { client, url: world.api.origin() + "/notes" }
        }

        async fn call(&self, content: usize) -> Answer {
            match self.client.post(&self.url).body(vec![b'a'; content]).send().await {
                Ok(response) => Answer::of(response.status().as_u16()),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Middleware: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
