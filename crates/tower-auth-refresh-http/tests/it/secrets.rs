//! No byte of a secret in `Debug`, `Display` and errors.

use std::error::Error;
use std::fmt::Write;

use serde_json::json;
use tower_auth_refresh::{AccessToken, RefreshToken, Tokens};
use tower_auth_refresh_http::{
    ClientAuth, ClientCredentials, JsonLogin, JsonLogout, JsonRefresh, OAuthRefresh, OAuthRevoke,
};

use crate::support::{Scripted, answer};

const URL: &str = "https://api.example.com/auth/refresh";

/// A part of every secret.
const SECRET: &str = "hunter2";

fn shown(error: &dyn Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(error) = source {
        write!(text, "{error} {error:?}").unwrap();
        source = error.source();
    }
    text
}

#[test]
fn configured_secrets_are_not_shown() {
    let client = Scripted::default().client().header(http::header::AUTHORIZATION, SECRET.parse().unwrap());
    let basic = || ClientAuth::basic("app", SECRET);
    let shown = format!(
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        client,
        OAuthRefresh::new(client.clone(), URL, basic()).unwrap(),
        OAuthRefresh::new(client.clone(), URL, ClientAuth::post("app", SECRET)).unwrap(),
        OAuthRevoke::new(client.clone(), URL, basic()).unwrap(),
        ClientCredentials::new(client.clone(), URL, basic()).unwrap(),
        JsonRefresh::new(client.clone(), URL).unwrap(),
        JsonLogin::new(client.clone(), URL).unwrap(),
        JsonLogout::new(client.clone(), URL).unwrap(),
        JsonRefresh::new(client.clone(), URL).unwrap().cookie("rt"),
    );
    assert!(!shown.contains(SECRET), "{shown}");
    for name in ["AuthClient { timeout", "ClientAuth { id", "Classifier { call"] {
        assert!(shown.contains(name), "{name}: {shown}");
    }
}

#[test]
fn the_query_of_an_endpoint_and_the_values_of_parameters_are_not_shown() {
    let (client, url) = (Scripted::default().client(), format!("{URL}?key={SECRET}"));
    let refresh = OAuthRefresh::new(client.clone(), &url, ClientAuth::public("app")).unwrap().param("hint", SECRET);
    let shown = format!("{refresh:?} {:?}", JsonRefresh::new(client, &url).unwrap());
    assert!(!shown.contains(SECRET) && shown.contains("hint") && shown.contains(URL), "{shown}");
}

#[tokio::test]
async fn secrets_in_requests_and_answers_are_not_shown_in_errors() {
    let tokens =
        Tokens::new(AccessToken::new(SECRET).unwrap(), RefreshToken::new(format!("{SECRET}-refresh")).unwrap());
    let unfit = Tokens::from_refresh_token(RefreshToken::new(format!("{SECRET}; x=y")).unwrap());
    for status in [200, 201, 302, 400, 401, 403, 429, 500, 503] {
        for body in [
            SECRET.to_owned(),
            format!(r#"{{"error":"{SECRET}","error_description":"{SECRET}"}}"#),
            format!(r#"{{"error":{{"code":"{SECRET}"}}}}"#),
            format!(r#"{{"access_token":"{SECRET}\r\n"}}"#),
            format!(r#"{{"access_token":"a","refresh_token":"{SECRET}\r\n"}}"#),
            format!(r#"{{"access_token":["{SECRET}"]}}"#),
            format!(r#"{{"access_token":"{SECRET}","token_type":"{SECRET}"}}"#),
            format!(r#"{{"access_token":"{SECRET}"#),
        ] {
            let answer = answer(status, body)
                .header("set-cookie", format!("rt={SECRET}\t"))
                .header("location", format!("https://x.example/{SECRET}"))
                .header("www-authenticate", format!("Bearer error=\"{SECRET}\", {SECRET}"))
                .header("retry-after", SECRET);
            let client = Scripted::with([answer]).client();
            let auth = || ClientAuth::basic("app", SECRET);
            let json = JsonRefresh::new(client.clone(), URL).unwrap();
            let cookie = JsonRefresh::new(client.clone(), URL).unwrap().cookie("rt");
            let errors = [
                json.refresh(&tokens).await.err(),
                OAuthRefresh::new(client.clone(), URL, auth()).unwrap().refresh(&tokens).await.err(),
                cookie.refresh(&tokens).await.err(),
                cookie.refresh(&unfit).await.err(),
                ClientCredentials::new(client.clone(), URL, auth()).unwrap().request_tokens().await.err(),
            ];
            for error in errors.iter().flatten() {
                assert!(!shown(error).contains(SECRET), "{}", shown(error));
            }
            let login = JsonLogin::new(client.clone(), URL).unwrap().request_tokens(&json!({"password": SECRET})).await;
            let logout = JsonLogout::new(client.clone(), URL).unwrap().with_access_token().revoke(&tokens).await;
            let revoke = OAuthRevoke::new(client, URL, auth()).unwrap().revoke(&tokens).await;
            for error in [login.err(), logout.err(), revoke.err()].iter().flatten() {
                assert!(!shown(error).contains(SECRET), "{}", shown(error));
            }
        }
    }
}
