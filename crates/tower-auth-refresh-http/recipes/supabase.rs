use http::{HeaderName, HeaderValue};
use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh};

const DEAD: [&str; 6] = [
    "refresh_token_not_found",
    "refresh_token_already_used",
    "session_not_found",
    "session_expired",
    "user_not_found",
    "user_banned",
];

fn supabase(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://PROJECT.supabase.co/auth/v1/token?grant_type=refresh_token")?;
    Ok(refresh
        .header(HeaderName::from_static("apikey"), HeaderValue::from_static("PUBLISHABLE_KEY"))
        // The gateway answers 401 to a wrong key, which must not end the session.
        .with_oauth_rules()
        .rejected_when(|_, body| DEAD.iter().any(|dead| body["error_code"] == *dead || body["code"] == *dead)))
}
