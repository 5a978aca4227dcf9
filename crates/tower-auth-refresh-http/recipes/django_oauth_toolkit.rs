use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn django_oauth_toolkit(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::basic("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://HOST/o/token/", auth)
}
