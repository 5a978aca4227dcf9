use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn quickbooks(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::basic("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://oauth.platform.intuit.com/oauth2/v1/tokens/bearer", auth)
}
