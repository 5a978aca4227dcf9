use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn strava(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    let refresh = OAuthRefresh::new(http, "https://www.strava.com/api/v3/oauth/token", auth)?;
    Ok(refresh.rejected_when(|_, body| {
        let mut errors = body["errors"].as_array().into_iter().flatten();
        errors.any(|error| error["resource"] == "RefreshToken" && error["code"] == "invalid")
    }))
}
