use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn entra(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://login.microsoftonline.com/TENANT/oauth2/v2.0/token", auth)
}
