//! async-openai, over the handle of reqwest.

use async_openai::Client;
use async_openai::config::OpenAIConfig;
use async_openai::error::OpenAIError;
use async_openai::middleware::HttpRequestFactory;
use http::header::AUTHORIZATION;
use tower::service_fn;
use tower_auth_refresh_reqwest::ApiClient;

/// Builds a client whose requests are sent by the handle.
#[must_use]
pub fn client(api: ApiClient, config: OpenAIConfig) -> Client<OpenAIConfig> {
    // [recipe: async-openai]
    let send = move |request: HttpRequestFactory| {
        let api = api.clone();
        async move {
            let mut request = request.build().await?;
            request.headers_mut().remove(AUTHORIZATION);
            Ok::<_, OpenAIError>(api.execute(request).await?)
        }
    };
    Client::with_config(config).with_http_service(service_fn(send))
    // [end]
}

#[cfg(test)]
mod tests {
    use async_openai::types::chat::{ChatCompletionRequestUserMessage, CreateChatCompletionRequestArgs};
    use bytes::Bytes;
    use http::{Request, Response};
    use serde_json::json;

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, body, cases, json};

    #[derive(Default)]
    pub(crate) struct OpenAi;

    impl Protocol for OpenAi {
        async fn accept(&self, _: Request<Bytes>) -> Response<Body> {
            json(&json!({ "id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [] }))
        }

        fn refuse(&self, refusal: Response<Body>) -> Response<Body> {
            refusal.map(|_| body(r#"{"error":{"message":"the token has expired"}}"#))
        }
    }

    impl Stack for Client<OpenAIConfig> {
        type Protocol = OpenAi;

        async fn build(world: &World) -> Self {
            let api = crate::reqwest::client(world.session.clone(), world.origin()).unwrap();
            client(api, OpenAIConfig::new().with_api_base(world.api.origin()))
        }

        async fn call(&self, content: usize) -> Answer {
            let message = ChatCompletionRequestUserMessage::from("a".repeat(content));
            let request = CreateChatCompletionRequestArgs::default().model("m").messages([message.into()]).build();
            match self.chat().create(request.unwrap()).await {
                Ok(_) => Answer::Accepted,
                Err(OpenAIError::ApiError(error)) => Answer::of(error.status_code.as_u16()),
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        Client<OpenAIConfig>: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host, body_over_the_limit
    );
}
