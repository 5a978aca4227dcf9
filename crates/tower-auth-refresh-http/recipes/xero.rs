use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn xero(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::basic("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://identity.xero.com/connect/token", auth)
}
