use tower_auth_refresh_http::{AuthClient, ClientAuth, InvalidEndpoint, OAuthRefresh, TokenFields};

const DEAD: [&str; 4] = ["TOKEN_EXPIRED", "USER_DISABLED", "USER_NOT_FOUND", "INVALID_REFRESH_TOKEN"];

fn firebase(http: AuthClient) -> Result<OAuthRefresh, InvalidEndpoint> {
    let auth = ClientAuth::none();
    let refresh = OAuthRefresh::new(http, "https://securetoken.googleapis.com/v1/token?key=API_KEY", auth)?;
    Ok(refresh.fields(TokenFields::default().access_token("id_token")).rejected_when(|status, body| {
        let message = body["error"]["message"].as_str().unwrap_or_default();
        status == 400 && DEAD.iter().any(|dead| message.starts_with(dead))
    }))
}
