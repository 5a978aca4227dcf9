use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn zoho(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    let refresh = OAuthRefresh::new(http, "https://accounts.zoho.com/oauth/v2/token", auth)?;
    Ok(refresh.rejected_when(|_, body| body["error"] == "invalid_code"))
}
