use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn fitbit(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::basic("CLIENT_ID", "CLIENT_SECRET");
    let refresh = OAuthRefresh::new(http, "https://api.fitbit.com/oauth2/token", auth)?;
    Ok(refresh.rejected_when(|_, body| {
        let mut errors = body["errors"].as_array().into_iter().flatten();
        errors.any(|error| error["errorType"] == "invalid_grant")
    }))
}
