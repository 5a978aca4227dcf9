use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh};

fn keycloak(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::basic("CLIENT_ID", "CLIENT_SECRET");
    OAuthRefresh::new(http, "https://HOST/realms/REALM/protocol/openid-connect/token", auth)
}
