//! `AuthClient::call`: the HTTP client of other crates.

use std::convert::Infallible;
use std::error::Error;
use std::future::{pending, ready};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use oauth2::basic::{BasicClient, BasicErrorResponseType};
use oauth2::{AuthorizationCode, ClientId, ClientSecret, RequestTokenError, TokenUrl};
use tower::{BoxError, service_fn};
use tower_auth_refresh_http::{AuthClient, AuthServerError, InvalidEndpoint, TokenFields};

use crate::support::{Scripted, access, answer, refresh};

const URL: &str = "https://auth.example.com/token?key=s3cret";

fn post(url: &str) -> Request<Vec<u8>> {
    Request::post(url).body(b"grant_type=authorization_code&code=c1".to_vec()).unwrap()
}

async fn call(client: AuthClient) -> Result<Response<Vec<u8>>, AuthServerError> {
    client.call(post(URL)).await
}

#[tokio::test]
async fn oauth2_signs_in_by_it() {
    let body = r#"{"access_token":"a1","refresh_token":"r1","token_type":"Bearer","expires_in":300}"#;
    let scripted = Scripted::with([answer(200, body)]);
    let http = scripted.client();
    let client = BasicClient::new(ClientId::new("app".to_owned()))
        .set_client_secret(ClientSecret::new("s3cret".to_owned()))
        .set_token_uri(TokenUrl::new("https://auth.example.com/token".to_owned()).unwrap());
    let code = AuthorizationCode::new("c1".to_owned());
    let response = client.exchange_code(code).request_async(&|request| http.call(request)).await.unwrap();
    let tokens = TokenFields::default().tokens(&response).unwrap();
    assert_eq!((access(&tokens), refresh(&tokens)), ("a1", Some("r1")));

    let request = scripted.only();
    assert_eq!((request.method.clone(), request.uri.path()), (Method::POST, "/token"));
    assert!(request.form().contains(&("code".to_owned(), "c1".to_owned())));
    assert!(request.header("authorization").unwrap().starts_with("Basic "));
}

#[tokio::test]
async fn a_refusal_reaches_oauth2_as_the_servers_own() {
    let http = Scripted::with([answer(400, r#"{"error":"invalid_grant"}"#)]).client();
    let client = BasicClient::new(ClientId::new("app".to_owned()))
        .set_token_uri(TokenUrl::new("https://auth.example.com/token".to_owned()).unwrap());
    let code = AuthorizationCode::new("c1".to_owned());
    match client.exchange_code(code).request_async(&|request| http.call(request)).await {
        Err(RequestTokenError::ServerResponse(refusal)) => {
            assert_eq!(*refusal.error(), BasicErrorResponseType::InvalidGrant);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn the_request_is_sent_as_it_is_but_for_its_coding_and_what_is_to_be_kept_from_logs() {
    let seen = Arc::new(Mutex::new(HeaderMap::new()));
    let client = AuthClient::new({
        let seen = Arc::clone(&seen);
        service_fn(move |request: Request<Full<Bytes>>| {
            *seen.lock().unwrap() = request.headers().clone();
            ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
        })
    });
    let client = client
        .header(USER_AGENT, HeaderValue::from_static("app/1"))
        .header(ACCEPT, HeaderValue::from_static("text/html"));
    let mut request = post(URL);
    for (name, value) in [
        (ACCEPT, "application/jwt"),
        (ACCEPT_ENCODING, "br"),
        (AUTHORIZATION, "Basic YTpi"),
        (CONTENT_TYPE, "application/x-www-form-urlencoded"),
    ] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    client.call(request).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!((&seen[USER_AGENT], &seen[ACCEPT]), (&"app/1".parse().unwrap(), &"application/jwt".parse().unwrap()));
    assert_eq!(seen[ACCEPT_ENCODING], "identity");
    assert!(seen[AUTHORIZATION].is_sensitive() && seen[AUTHORIZATION] == "Basic YTpi");
    assert!(!seen[CONTENT_TYPE].is_sensitive());
}

#[tokio::test]
async fn the_call_skips_the_sessions_own_layer_and_has_its_method_and_body() {
    let scripted = Scripted::with([answer(200, "")]);
    scripted.client().call(Request::put(URL).body(b"text".to_vec()).unwrap()).await.unwrap();
    let request = scripted.only();
    assert!(request.skips_auth);
    assert_eq!((request.method.as_str(), &*request.body, request.uri.to_string()), ("PUT", "text", URL.to_owned()));
}

#[tokio::test]
async fn a_url_that_no_secret_may_be_sent_to_is_not_called() {
    let scripted = Scripted::with([answer(200, "{}")]);
    for url in ["http://auth.example.com/token?key=s3cret", "/token", "https://app:s3cret@auth.example.com/"] {
        let error = scripted.client().call(post(url)).await.unwrap_err();
        assert!(error.is_misconfigured() && error.source().unwrap().is::<InvalidEndpoint>(), "{url}");
        assert!(!format!("{error} {error:?}").contains("s3cret"));
    }
    assert!(scripted.requests().is_empty());
    let plain = scripted.client().allow_plain_http();
    assert!(plain.call(post("http://auth.example.com/token")).await.is_ok());
    assert!(scripted.client().call(post("http://127.0.0.1:8080/token")).await.is_ok());
}

#[tokio::test]
async fn a_redirect_is_an_error_of_every_status() {
    for status in [300, 301, 302, 303, 304, 307, 308] {
        let redirect = answer(status, "{}").header("location", "https://evil.example/");
        let scripted = Scripted::with([redirect]);
        let error = call(scripted.client()).await.unwrap_err();
        assert!(error.is_misconfigured());
        let expected = "https://auth.example.com/token: the answer is a redirect, which is never followed (status ";
        assert_eq!(error.to_string(), format!("{expected}{status})"));
        assert_eq!(scripted.requests().len(), 1);
    }
}

#[tokio::test]
async fn any_other_answer_is_returned_as_it_is() {
    for status in [200, 201, 204, 400, 401, 403, 429, 500, 503] {
        let scripted = Scripted::with([answer(status, "<p>").header("retry-after", "5").header("content-length", "3")]);
        let response = call(scripted.client()).await.unwrap();
        assert_eq!((response.status().as_u16(), &**response.body()), (status, &b"<p>"[..]));
        assert_eq!(response.headers()["retry-after"], "5");
    }
}

#[tokio::test]
async fn a_compressed_answer_is_returned_decoded_without_the_headers_of_its_coding() {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(b"\xEF\xBB\xBF{}").unwrap();
    let gzip = answer(200, encoder.finish().unwrap())
        .header("content-encoding", "gzip")
        .header("content-length", "24")
        .header("transfer-encoding", "chunked");
    let response = call(Scripted::with([gzip]).client()).await.unwrap();
    assert_eq!(response.body(), b"{}");
    assert!(response.headers().is_empty(), "{:?}", response.headers());

    let unknown = answer(200, "x").header("content-encoding", "br");
    let error = call(Scripted::with([unknown]).client()).await.unwrap_err();
    assert!(error.is_in_doubt() && error.to_string().contains("content encoding"));
}

#[tokio::test]
async fn an_answer_over_the_limit_is_an_error() {
    let sized = |length: usize| Scripted::with([answer(200, vec![b'x'; length])]).client().answer_limit(100);
    assert_eq!(call(sized(100)).await.unwrap().body().len(), 100);
    let error = call(sized(101)).await.unwrap_err();
    assert_eq!((error.status().unwrap().as_u16(), error.is_in_doubt()), (200, true));
    assert!(error.to_string().contains("longer than the limit"));
    let failed = answer(500, vec![b'x'; 101]).header("content-length", "101");
    assert!(call(Scripted::with([failed]).client().answer_limit(100)).await.is_err());
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_with_its_cause() {
    let breaking_off = AuthClient::new(service_fn(|_: Request<Full<Bytes>>| {
        let frames: [Result<Frame<Bytes>, BoxError>; 2] = [Ok(Frame::data("{".into())), Err("reset".into())];
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(futures_util::stream::iter(frames)))))
    }));
    let error = call(breaking_off).await.unwrap_err();
    assert!(error.is_in_doubt() && error.to_string().contains("broke off"));
    assert_eq!(error.source().unwrap().to_string(), "reset");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_is_an_error_at_the_time_out() {
    let silent =
        AuthClient::new(service_fn(|_: Request<Full<Bytes>>| pending::<Result<Response<Full<Bytes>>, Infallible>>()));
    let started = tokio::time::Instant::now();
    let error = call(silent.timeout(Duration::from_secs(3))).await.unwrap_err();
    assert!(error.is_in_doubt() && error.endpoint() == Some("https://auth.example.com/token"));
    assert_eq!(started.elapsed().as_secs(), 3);
}
