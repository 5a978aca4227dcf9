use tower_auth_refresh_http::{AuthClient, InvalidEndpoint, JsonRefresh, TokenFields};

const QUERY: &str = "mutation($token: String!) { refresh(token: $token) { accessToken refreshToken } }";

fn graphql(http: AuthClient) -> Result<JsonRefresh, InvalidEndpoint> {
    let refresh = JsonRefresh::new(http, "https://HOST/graphql")?;
    Ok(refresh
        .member("query", QUERY)
        .refresh_token_field("variables.token")
        .fields(
            TokenFields::default().access_token("data.refresh.accessToken").refresh_token("data.refresh.refreshToken"),
        )
        .rejected_when(|_, body| {
            let mut errors = body["errors"].as_array().into_iter().flatten();
            errors.any(|error| error["extensions"]["code"] == "UNAUTHENTICATED")
        }))
}
