use http::HeaderName;
use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh};

const DEAD: [&str; 3] = ["Token has expired", "Token has been revoked", "Signature verification failed"];

fn flask_jwt_extended_cookies(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/refresh")?;
    Ok(refresh
        .cookie("refresh_token_cookie")
        .access_token_cookie("access_token_cookie")
        .header_from_cookie(HeaderName::from_static("x-csrf-token"), "csrf_refresh_token")
        // A CSRF token that doesn't match is answered 401 too, and must not end the session.
        .with_oauth_rules()
        .rejected_when(|_, body| DEAD.iter().any(|dead| body["msg"] == *dead)))
}
