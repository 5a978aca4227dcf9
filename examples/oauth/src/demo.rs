//! The demonstration: the testkit's servers, and a token file of its own.

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
use crate::{chain, refusal};

pub(crate) async fn run() -> Result<(), BoxError> {
    let directory = std::env::temp_dir().join(format!("oauth-example-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let done = show(&directory.join("refresh-token")).await;
    std::fs::remove_dir_all(&directory)?;
    done
}

async fn show(path: &std::path::Path) -> Result<(), BoxError> {
    let server = TestServer::start().await?;
    server.configure(|settings| settings.access_lifetime = Duration::from_secs(1));
    println!("An authorization server and an API on {}. Access tokens live for 1 s.", server.address());
    println!("To call a server of your own, see --help.\n");

    std::fs::write(path, server.sign_in("ada").refresh_token)?;
    println!("ada's refresh token is in {}", path.display());

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
            println!("The server revokes ada's sign-in.");
        }
        let held = std::fs::read_to_string(path)?;
        let request = Request::get(server.url("/api/notes")).body(Full::<Bytes>::default())?;
        let response = client.clone().oneshot(request).await?;
        let rotated = if std::fs::read_to_string(path)? == held { "" } else { ", a new refresh token in the file" };
        println!("GET /api/notes → {}{rotated}", response.status());
        if let Some(why) = refusal(&response) {
            println!("{why}");
        }
        response.into_body().collect().await?;
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
    let counters = server.counters();
    println!(
        "\nThe server granted {} refreshes, and saw {} superseded refresh tokens.",
        counters.granted, counters.violations
    );
    Ok(())
}

/// The testkit's refresh endpoint wants JSON: this hands it the form of a token endpoint.
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
            kit.oneshot(request).await.map_err(|error| BoxError::from(chain(&error)))
        }
    }))
}
