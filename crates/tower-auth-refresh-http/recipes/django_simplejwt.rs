use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};

fn django_simplejwt(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/api/token/refresh/")?;
    Ok(refresh
        .refresh_token_field("refresh")
        .fields(TokenFields::default().access_token("access").refresh_token("refresh")))
}
