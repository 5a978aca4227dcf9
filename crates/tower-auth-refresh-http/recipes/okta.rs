use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn okta(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::basic("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://DOMAIN.okta.com/oauth2/default/v1/token", auth)
}
