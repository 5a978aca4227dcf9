//! [`World`]: a user's session, the API of a stack, and a foreign host.

use bytes::Bytes;
use http::header::WWW_AUTHENTICATE;
use http::{HeaderName, Request, Response};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower_auth_refresh::layer::PerRequest;
use tower_auth_refresh::{AccessToken, AuthRefreshLayer, Origin, RefreshToken, Session, Tokens};
use tower_auth_refresh_http::{AuthClient, JsonRefresh};
use tower_auth_refresh_testkit::{Fault, Route, TestKit, TestServer};

use super::api::{Api, Body, Protocol, body};

/// The header of an API that doesn't read the token from `Authorization`.
pub(crate) static TOKEN_HEADER: HeaderName = HeaderName::from_static("x-api-token");

/// A user who is signed in, the servers, and the client's configuration.
pub(crate) struct World {
    pub(crate) auth: TestServer,
    pub(crate) session: Session,
    pub(crate) api: Api,
    pub(crate) foreign: Api,
    custom_header: bool,
}

impl World {
    pub(crate) async fn new(protocol: impl Protocol) -> Self {
        let auth = TestServer::start().await.unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let refresh = JsonRefresh::new(AuthClient::new(client), &auth.url("/auth/refresh")).unwrap();
        let pair = auth.sign_in("ada");
        let access = AccessToken::new(pair.access_token).unwrap();
        let tokens = Tokens::new(access, RefreshToken::new(pair.refresh_token).unwrap());
        let session = Session::builder(refresh).tokens(tokens).build().await.unwrap();
        let api = Api::start(auth.kit(), protocol).await;
        let foreign = Api::start(&TestKit::new(), Foreign).await;
        Self { auth, session, api, foreign, custom_header: false }
    }

    /// Sets that the API reads the token from a header of its own.
    pub(crate) fn with_custom_header(self) -> Self {
        Self { custom_header: true, ..self }
    }

    /// Returns the layer that most recipes begin with.
    pub(crate) fn layer(&self) -> AuthRefreshLayer {
        let layer = crate::layer(self.session.clone(), &self.api.origin()).unwrap();
        if self.custom_header { layer.header(TOKEN_HEADER.clone()).without_scheme() } else { layer }
    }

    /// Returns the layer of a client that takes sessions from requests, if the API has a header of its own.
    pub(crate) fn per_request_layer(&self) -> Option<AuthRefreshLayer<PerRequest>> {
        let layer = || AuthRefreshLayer::per_request(self.origin()).header(TOKEN_HEADER.clone()).without_scheme();
        self.custom_header.then(layer)
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin::parse(&self.api.origin()).unwrap()
    }

    /// Makes the API redirect the next request to the foreign host, which refuses all tokens.
    pub(crate) fn redirect_once(&self) {
        let elsewhere = format!("{}/elsewhere", self.foreign.origin());
        self.auth.inject(Route::Api, Fault::status(307).header("location", &elsewhere).times(1));
    }
}

struct Foreign;

impl Protocol for Foreign {
    async fn accept(&self, _: Request<Bytes>) -> Response<Body> {
        unreachable!("no user is signed in at the foreign host")
    }

    fn refuse(&self, refusal: Response<Body>) -> Response<Body> {
        assert!(refusal.headers().contains_key(WWW_AUTHENTICATE));
        refusal.map(|_| body(""))
    }
}
