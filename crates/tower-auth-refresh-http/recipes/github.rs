use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn github(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://github.com/login/oauth/access_token", auth)
}
