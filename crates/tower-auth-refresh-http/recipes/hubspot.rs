use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn hubspot(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    let refresh = OAuthRefresh::new(http, "https://api.hubapi.com/oauth/v1/token", auth)?;
    Ok(refresh.rejected_when(|_, body| body["status"] == "BAD_REFRESH_TOKEN"))
}
