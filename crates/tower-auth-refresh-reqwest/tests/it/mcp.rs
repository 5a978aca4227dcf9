//! [`McpClient`], call by call; `examples/stacks` has a whole client of rmcp.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use http::Method;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use rmcp::model::ClientJsonRpcMessage;
use rmcp::transport::streamable_http_client::{StreamableHttpClient, StreamableHttpError, StreamableHttpPostResponse};
use tower_auth_refresh_reqwest::{McpClient, Session, reqwest};

use crate::support::{Answer, Numbered, Seen, Server, expired, service, status};

type Headers = HashMap<http::HeaderName, http::HeaderValue>;
type Outcome<T> = Result<T, StreamableHttpError<reqwest::Error>>;

fn client(session: &Session) -> McpClient {
    McpClient::new(session.clone(), &service())
}

fn headers() -> Headers {
    HashMap::from([("x-own".parse().unwrap(), "1".parse().unwrap())])
}

fn message() -> ClientJsonRpcMessage {
    serde_json::from_str(r#"{"jsonrpc": "2.0", "method": "notifications/initialized"}"#).unwrap()
}

async fn post(client: &McpClient, server: &Server) -> Outcome<StreamableHttpPostResponse> {
    client.post_message(server.url("/mcp").into(), message(), Some("s1".into()), None, headers()).await
}

async fn delete(client: &McpClient, server: &Server) -> Outcome<()> {
    client.delete_session(server.url("/mcp").into(), "s1".into(), None, headers()).await
}

/// A server of events of 100 bytes.
fn events(_: &Seen) -> Answer {
    let mut answer = status(200);
    answer.headers_mut().insert(CONTENT_TYPE, "text/event-stream".parse().unwrap());
    *answer.body_mut() = format!("data: {}\n\n", "e".repeat(92)).into();
    answer
}

/// Checks that the last call was refused and sent again with the newer token, and returns one of the two requests.
fn replayed(server: &Server) -> Seen {
    let [refused, again] = server.take_seen().try_into().unwrap();
    assert_eq!((refused.token(), again.token()), (Some("Bearer a1"), Some("Bearer a2")));
    assert_eq!(refused.clone().without_token(), again.without_token());
    assert_eq!((refused.header("x-own"), refused.header("mcp-session-id")), (Some("1"), Some("s1")));
    refused
}

#[tokio::test]
async fn each_call_is_sent_again_with_a_newer_token_if_it_is_refused() {
    let server = Server::expiring(|_| status(202)).await;
    let uri: Arc<str> = server.url("/mcp").into();
    for limits in [None, Some(1024)] {
        let user = Numbered::new().await;
        let client = client(&user.session);
        let outcome = match limits {
            None => post(&client, &server).await,
            Some(limit) => {
                let (uri, id) = (Arc::clone(&uri), Some("s1".into()));
                client.post_message_with_max_sse_event_size(uri, message(), id, None, headers(), limit).await
            }
        };
        assert!(matches!(outcome, Ok(StreamableHttpPostResponse::Accepted)), "{outcome:?}");
        let seen = replayed(&server);
        assert_eq!((seen.method, &seen.body[..]), (Method::POST, &serde_json::to_vec(&message()).unwrap()[..]));
        assert_eq!(user.refreshes(), 1);
    }

    // The refusal of this call is an error with a status, and no challenge of rmcp's.
    let user = Numbered::new().await;
    delete(&client(&user.session), &server).await.unwrap();
    assert_eq!((replayed(&server).method, user.refreshes()), (Method::DELETE, 1));

    let server = Server::expiring(events).await;
    let uri: Arc<str> = server.url("/mcp").into();
    for limit in [None, Some(1024), Some(10)] {
        let user = Numbered::new().await;
        let client = client(&user.session);
        let (uri, id, last) = (Arc::clone(&uri), Some("s1".into()), Some("7".to_owned()));
        let stream = match limit {
            None => client.get_stream(uri, id, last, None, headers()).await,
            Some(limit) => client.get_stream_with_max_sse_event_size(uri, id, last, None, headers(), limit).await,
        };
        let seen = replayed(&server);
        assert_eq!((&seen.method, seen.header("last-event-id")), (&Method::GET, Some("7")));
        let event = stream.unwrap().next().await.unwrap();
        assert_eq!(event.is_ok(), limit != Some(10), "{event:?}");
    }
}

#[tokio::test]
async fn a_call_that_fails_for_another_reason_causes_no_refresh() {
    let server = Server::start(|_| status(500)).await;
    let user = Numbered::new().await;
    let client = client(&user.session);
    assert!(delete(&client, &server).await.is_err());
    assert!(post(&client, &server).await.is_err());
    assert_eq!((server.take_seen().len(), user.refreshes()), (2, 0));
}

#[tokio::test]
async fn without_a_newer_token_the_refusal_is_returned() {
    let server = Server::start(|_| expired()).await;
    let user = Numbered::new().await;
    let client = client(&user.session);
    // The newer token is refused as well.
    let challenge = expired().headers()[WWW_AUTHENTICATE].to_str().unwrap().to_owned();
    let Err(StreamableHttpError::AuthRequired(refusal)) = post(&client, &server).await else { panic!("no refusal") };
    assert_eq!((refusal.www_authenticate_header, user.refreshes()), (challenge, 1));
    assert_eq!(server.take_seen().len(), 2);
    // Without a session, the call is sent without a token.
    user.session.sign_out().await.unwrap();
    assert!(matches!(post(&client, &server).await, Err(StreamableHttpError::AuthRequired(_))));
    let [seen] = server.take_seen().try_into().unwrap();
    assert_eq!((seen.token(), user.refreshes()), (None, 1));
}

#[tokio::test]
async fn the_output_for_debugging_has_no_token() {
    let user = Numbered::new().await;
    let text = format!("{:?}", client(&user.session));
    assert!(text.starts_with("McpClient") && !text.contains("a1"), "{text}");
}
