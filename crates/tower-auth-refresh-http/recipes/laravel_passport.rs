use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn laravel_passport(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    let refresh = OAuthRefresh::new(http, "https://HOST/oauth/token", auth)?;
    Ok(refresh.rejected_when(|status, body| status == 401 && body["error"] == "invalid_request"))
}
