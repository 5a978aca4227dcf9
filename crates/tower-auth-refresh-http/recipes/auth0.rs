use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn auth0(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::public("CLIENT_ID");
    OAuthRefresh::new(http, "https://TENANT.auth0.com/oauth/token", auth)
}
