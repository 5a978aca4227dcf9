//! [`ApiClient`] as the HTTP client of `object_store`.

use async_trait::async_trait;
use http::header::AUTHORIZATION;
use http_body_util::BodyExt;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use crate::api_client::ApiClient;

/// Connects stores with this client.
///
/// The store's own [`ClientOptions`] have no effect: the settings are those of the `reqwest::ClientBuilder`. A store that
/// wants a token gets an empty one (`with_bearer_token("")`), in whose place the session's is sent; requests with
/// credentials of the store's own pass untouched.
impl HttpConnector for ApiClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for ApiClient {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let credentials = request.headers().get(AUTHORIZATION);
        if credentials.is_some_and(|credentials| credentials.as_bytes().trim_ascii() == b"Bearer") {
            request.headers_mut().remove(AUTHORIZATION);
        }
        let request = request.map(|body| match body.as_bytes() {
            Some(whole) => reqwest::Body::from(whole.clone()),
            None => reqwest::Body::wrap(body),
        });
        let request = reqwest::Request::try_from(request).map_err(classified)?;
        let response: http::Response<reqwest::Body> = self.execute(request).await.map_err(classified)?.into();
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(classified))))
    }
}

/// Tells the store which failures may be retried. The URL is left out: it may be signed.
fn classified(error: reqwest::Error) -> HttpError {
    let kind = if error.is_connect() {
        HttpErrorKind::Connect
    } else if error.is_timeout() {
        HttpErrorKind::Timeout
    } else if error.is_request() || error.is_body() {
        HttpErrorKind::Interrupted
    } else if error.is_decode() {
        HttpErrorKind::Decode
    } else {
        HttpErrorKind::Unknown
    };
    HttpError::new(kind, error.without_url())
}
