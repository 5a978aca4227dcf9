use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh, TokenFields};

fn slack(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::post("CLIENT_ID", "CLIENT_SECRET");
    let refresh = OAuthRefresh::new(http, "https://slack.com/api/oauth.v2.access", auth)?;
    Ok(refresh.fields(
        // A user's token. For a bot's token, the default fields apply.
        TokenFields::default()
            .access_token("authed_user.access_token")
            .refresh_token("authed_user.refresh_token")
            .expires_in("authed_user.expires_in"),
    ))
}
