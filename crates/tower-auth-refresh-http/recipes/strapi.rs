use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};

fn strapi(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/api/auth/refresh")?;
    Ok(refresh.refresh_token_field("refreshToken").fields(TokenFields::camel_case().access_token("jwt")))
}
