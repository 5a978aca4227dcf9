//! The demo: the testkit's servers and a temporary token file.

use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tower::{BoxError, ServiceBuilder, ServiceExt};
use tower_auth_refresh::{AuthRefreshLayer, Origin, Session, Tokens};
use tower_auth_refresh_http::{AuthClient, ClientAuth, OAuthRefresh};
use tower_auth_refresh_testkit::{TestKit, TestServer};

use crate::token_file::TokenFile;
use crate::{error_chain, refusal};

pub(crate) async fn run() -> Result<(), BoxError> {
    let directory = std::env::temp_dir().join(format!("oauth-example-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let result = run_in(&directory.join("refresh-token")).await;
    std::fs::remove_dir_all(&directory)?;
    result
}

async fn run_in(path: &std::path::Path) -> Result<(), BoxError> {
    let server = TestServer::start().await?;
    server.configure(|settings| settings.access_lifetime = Duration::from_secs(1));
    println!("An authorization server and an API run on {}. Access tokens expire after 1 s.", server.address());
    println!("To call another server, see --help.\n");

    std::fs::write(path, server.sign_in("ada").refresh_token)?;
    println!("The refresh token of ada is in {}.", path.display());

    let file = TokenFile::open(path)?;
    let refresh = OAuthRefresh::new(token_endpoint(server.kit()), &server.url("/token"), ClientAuth::public("demo"))?;
    let session = Session::builder(refresh)
        .tokens(Tokens::from_refresh_token(file.refresh_token().clone()))
        .store(file)
        .build()
        .await?;
    let client = ServiceBuilder::new()
        .layer(AuthRefreshLayer::new(session.clone(), Origin::parse(&server.origin())?))
        .service(Client::builder(TokioExecutor::new()).build_http());

    for call in 1..=6 {
        if call == 6 {
            server.revoke("ada");
            println!("The server revokes the tokens of ada.");
        }
        let before = std::fs::read_to_string(path)?;
        let request = Request::get(server.url("/api/notes")).body(Full::<Bytes>::default())?;
        let response = client.clone().oneshot(request).await?;
        let rotated = if std::fs::read_to_string(path)? == before { "" } else { ", new refresh token saved" };
        println!("GET /api/notes → {}{rotated}", response.status());
        if let Some(reason) = refusal(&response) {
            println!("{reason}");
        }
        response.into_body().collect().await?;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let counters = server.counters();
    println!(
        "\nRefreshes granted: {}. Superseded refresh tokens presented: {}.",
        counters.granted, counters.violations
    );
    Ok(())
}

/// Returns a client that emulates a token endpoint: it converts the form to the JSON of the testkit's refresh endpoint.
fn token_endpoint(kit: &TestKit) -> AuthClient {
    let kit = kit.clone();
    AuthClient::new(tower::service_fn(move |request: Request<Full<Bytes>>| {
        let kit = kit.clone();
        async move {
            let form = request.into_body().collect().await?.to_bytes();
            let form: serde_json::Map<_, _> = form_urlencoded::parse(&form)
                .map(|(name, value)| (name.into_owned(), value.into_owned().into()))
                .collect();
            let json = serde_json::to_vec(&form)?;
            let request = Request::post("/auth/refresh").body(Full::new(Bytes::from(json)))?;
            kit.oneshot(request).await.map_err(|error| BoxError::from(error_chain(&error)))
        }
    }))
}
