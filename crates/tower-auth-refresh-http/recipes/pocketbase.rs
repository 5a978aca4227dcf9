use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};

fn pocketbase(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/api/collections/users/auth-refresh")?;
    Ok(refresh
        .refresh_token_as_bearer()
        .fields(TokenFields::default().access_token("token").refresh_token("token"))
        .rejected_when(|status, body| status == 404 && body["message"] == "Missing auth record context."))
}
