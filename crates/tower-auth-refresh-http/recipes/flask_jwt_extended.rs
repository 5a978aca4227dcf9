use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh};

fn flask_jwt_extended(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/refresh")?;
    Ok(refresh
        .refresh_token_as_bearer()
        // A token that another key has signed.
        .rejected_when(|status, body| status == 422 && body["msg"].is_string()))
}
