//! reqwest, by its own handle.

use tower_auth_refresh_reqwest::{ApiClient, Origin, ReqwestService, Session, reqwest};

/// Builds a client of the API at this origin.
pub fn client(session: Session, api: Origin) -> reqwest::Result<ApiClient> {
    // [recipe: reqwest]
    let http = ReqwestService::new(reqwest::Client::builder())?;
    let api = ApiClient::new(session, api, http);
    // [end]
    Ok(api)
}

#[cfg(test)]
mod tests {
    use tower_auth_refresh_reqwest::SendWith;

    use super::*;
    use crate::support::{Answer, Json, Stack, World, cases};

    struct Reqwest {
        api: ApiClient,
        url: String,
    }

    impl Stack for Reqwest {
        type Protocol = Json;

        async fn build(world: &World) -> Self {
            let api = match world.per_request_layer() {
                Some(layer) => {
                    let http = ReqwestService::new(reqwest::Client::builder()).unwrap();
                    ApiClient::from_layer(layer, http).with_session(world.session.clone())
                }
                None => client(world.session.clone(), world.origin()).unwrap(),
            };
            Self { api, url: world.api.origin() + "/notes" }
        }

        async fn call(&self, content: usize) -> Answer {
            match self.api.post(&self.url).body(vec![b'a'; content]).send().await {
                Ok(response) => Answer::of(response.status().as_u16()),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Reqwest: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );

    #[tokio::test]
    async fn a_request_of_a_bare_client_is_sent_with_the_session() {
        let world = World::new(Json).await;
        world.auth.expire_access_tokens();
        let stack = Reqwest::build(&world).await;
        let request = reqwest::Client::new().get(&stack.url).query(&[("page", 2)]);
        let response = request.send_with(&stack.api).await.unwrap().error_for_status().unwrap();
        assert_eq!(response.url().as_str(), format!("{}?page=2", stack.url));
        assert_eq!(world.auth.counters().refreshes, 1);
    }
}
