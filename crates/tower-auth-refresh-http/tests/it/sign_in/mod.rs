//! Sign-in by browser and by device code.

mod browser;
mod device;
#[cfg(all(feature = "oidc", feature = "private-key-jwt"))]
mod id_token;

use serde_json::{Value, json};
use tower_auth_refresh_http::{AuthorizationServer, SignInError, SignInErrorKind, SignedIn};

use crate::support::{Answer, Scripted, answer};

const ISSUER: &str = "https://auth.example.com";

/// The metadata of a server with every endpoint.
fn metadata() -> Value {
    json!({
        "issuer": ISSUER,
        "authorization_endpoint": "https://auth.example.com/authorize",
        "token_endpoint": "https://auth.example.com/token",
        "device_authorization_endpoint": "https://auth.example.com/device",
        "jwks_uri": "https://auth.example.com/jwks",
    })
}

async fn discovered(metadata: Value) -> AuthorizationServer {
    let client = Scripted::with([answer(200, metadata.to_string())]).client();
    AuthorizationServer::discover(&client, ISSUER).await.unwrap()
}

fn tokens() -> Answer {
    answer(200, json!({"access_token": "a1", "refresh_token": "r1", "expires_in": 300, "scope": "notes"}).to_string())
}

fn kind(result: Result<SignedIn, SignInError>) -> SignInErrorKind {
    result.map(|_| ()).unwrap_err().kind()
}
