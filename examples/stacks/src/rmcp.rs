//! rmcp: a client of an MCP server, whose transport holds the session.

use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;
use tower_auth_refresh_reqwest::{McpClient, ReqwestService, Session, reqwest};

/// Makes a transport to the server at this URL.
pub fn transport(session: Session, url: &str) -> reqwest::Result<StreamableHttpClientTransport<McpClient>> {
    // [recipe: rmcp]
    let http = McpClient::new(session, &ReqwestService::new(reqwest::Client::builder())?);
    let server = StreamableHttpClientTransportConfig::with_uri(url);
    let transport = StreamableHttpClientTransport::with_client(http, server);
    // [end]
    Ok(transport)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::future::join_all;
    use http::{HeaderValue, Method, Request, Response, StatusCode};
    use rmcp::model::CallToolRequestParams;
    use rmcp::service::RunningService;
    use rmcp::{RoleClient, ServiceExt};
    use serde_json::{Value, json};

    use super::*;
    use crate::support::{Answer, Body, Protocol, Stack, World, body, cases, json};

    type McpService = RunningService<RoleClient, ()>;

    impl Stack for McpService {
        type Protocol = Tools;

        // rmcp's default, `max_concurrent_requests`.
        const CONCURRENCY: usize = 16;

        async fn build(world: &World) -> Self {
            let url = world.api.origin() + "/mcp";
            ().serve(transport(world.session.clone(), &url).unwrap()).await.unwrap()
        }

        async fn call(&self, content: usize) -> Answer {
            let arguments = json!({ "text": "a".repeat(content) }).as_object().unwrap().clone();
            match self.call_tool(CallToolRequestParams::new("add").with_arguments(arguments)).await {
                Ok(_) => Answer::Accepted,
                Err(error) if format!("{error:?}").contains("AuthRequired") => Answer::Refused,
                Err(error) => Answer::failed(error),
            }
        }
    }

    cases!(
        McpService: expired_token, stampede_of_50, network_failure_while_refreshing, ended_session,
        redirect_to_a_foreign_host
    );

    #[tokio::test]
    async fn five_tool_calls_at_once_cause_one_refresh() {
        let world = World::new(Tools::default()).await;
        let client = McpService::build(&world).await;
        world.auth.expire_access_tokens();
        world.auth.hold_unauthorized_until(5);
        for answer in join_all((0..5).map(|_| client.call(10))).await {
            assert_eq!(answer, Answer::Accepted);
        }
        let counters = world.auth.counters();
        assert_eq!((counters.unauthorized(), counters.refreshes), (5, 1));
    }

    #[tokio::test]
    async fn the_session_of_the_server_is_deleted_with_a_newer_token() {
        let world = World::new(Tools { has_sessions: true }).await;
        let client = McpService::build(&world).await;
        world.auth.expire_access_tokens();
        client.cancel().await.unwrap();
        let attempts = world.api.attempts();
        let deletions = attempts.iter().filter(|attempt| attempt.method == Method::DELETE);
        let statuses: Vec<_> = deletions.map(|attempt| attempt.status.as_u16()).collect();
        assert_eq!(statuses, [401, 200]);
        assert_eq!(world.auth.counters().refreshes, 1);
    }

    #[tokio::test]
    async fn a_user_who_is_signed_out_gets_the_refusal_of_the_server() {
        let world = World::new(Tools::default()).await;
        world.session.sign_out().await.unwrap();
        let url = world.api.origin() + "/mcp";
        let error = ().serve(transport(world.session.clone(), &url).unwrap()).await.unwrap_err();
        assert!(format!("{error:?}").contains("AuthRequired"), "{error:?}");
        assert_eq!(world.auth.counters().refreshes, 0);
    }

    /// An MCP server with one tool, without streams of its own.
    #[derive(Default)]
    pub(crate) struct Tools {
        has_sessions: bool,
    }

    impl Protocol for Tools {
        async fn accept(&self, request: Request<Bytes>) -> Response<Body> {
            let status = |status| Response::builder().status(status).body(body("")).unwrap();
            match *request.method() {
                Method::POST => {}
                Method::DELETE => return status(StatusCode::OK),
                _ => return status(StatusCode::METHOD_NOT_ALLOWED),
            }
            let call: Value = serde_json::from_slice(request.body()).unwrap();
            let result = match call["method"].as_str().unwrap() {
                "initialize" => json!({
                    "protocolVersion": call["params"]["protocolVersion"],
                    "capabilities": { "tools": {} },
                    "serverInfo": { "name": "notes", "version": "1" },
                }),
                "tools/call" => json!({ "content": [{ "type": "text", "text": "added" }] }),
                method if method.starts_with("notifications/") => return status(StatusCode::ACCEPTED),
                _ => {
                    let error = json!({ "code": -32601, "message": "method not found" });
                    return json(&json!({ "jsonrpc": "2.0", "id": call["id"], "error": error }));
                }
            };
            let mut response = json(&json!({ "jsonrpc": "2.0", "id": call["id"], "result": result }));
            if self.has_sessions {
                response.headers_mut().insert("mcp-session-id", HeaderValue::from_static("1"));
            }
            response
        }
    }
}
