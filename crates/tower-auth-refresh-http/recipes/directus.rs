use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};

fn directus(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/auth/refresh")?;
    Ok(refresh
        .member("mode", "json")
        .fields(TokenFields::default().access_token("data.access_token").refresh_token("data.refresh_token")))
}
