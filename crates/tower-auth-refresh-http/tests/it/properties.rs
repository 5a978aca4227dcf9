//! Any answer of a server: no panic, no allocation beyond the limit, no token with control bytes.

use http::StatusCode;
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use tower_auth_refresh::{RefreshError, Tokens};
use tower_auth_refresh_http::{ClientAuth, JsonRefresh, OAuthRefresh, TokenFields};

use crate::support::{Answer, Scripted, answer, old_tokens};

const URL: &str = "https://api.example.com/auth/refresh";

fn call<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(future)
}

/// Every kind of refresh call reads the answer.
fn read(answer: &Answer, fields: TokenFields) -> Vec<Result<Tokens, RefreshError>> {
    let client = || Scripted::with([answer.clone()]).client();
    call(async {
        vec![
            JsonRefresh::new(client(), URL).unwrap().fields(fields.clone()).refresh(&old_tokens()).await,
            OAuthRefresh::new(client(), URL, ClientAuth::public("app")).unwrap().refresh(&old_tokens()).await,
            JsonRefresh::new(client(), URL).unwrap().cookie("rt").fields(fields).refresh(&old_tokens()).await,
        ]
    })
}

fn fit_for_a_header(tokens: &Tokens) -> bool {
    let access = tokens.access_token().unwrap().expose_secret();
    let refresh = tokens.refresh_token().map_or("r", |token| token.expose_secret());
    !access.is_empty()
        && access.bytes().all(|byte| byte.is_ascii_graphic())
        && !refresh.is_empty()
        && refresh.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        "[ -~]{0,20}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("access_token".to_owned()),
        Just("refresh_token".to_owned()),
        Just("expires_in".to_owned()),
        Just("expires_at".to_owned()),
        Just("token_type".to_owned()),
        Just("error".to_owned()),
        Just("data".to_owned()),
        any::<String>(),
    ];
    leaf.prop_recursive(4, 32, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((name.clone(), inner), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

fn any_header() -> impl Strategy<Value = String> {
    "[\\t -~]{0,60}".prop_map(|value| value.trim().to_owned())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_with_any_headers(
        status in 100..=999_u16,
        body in vec(any::<u8>(), 0..300),
        retry_after in any_header(),
        challenge in any_header(),
        cookie in any_header(),
    ) {
        let answer = answer(status, body)
            .header("retry-after", retry_after)
            .header("www-authenticate", challenge)
            .header("set-cookie", cookie);
        for tokens in read(&answer, TokenFields::default()).into_iter().flatten() {
            prop_assert!(fit_for_a_header(&tokens));
        }
    }

    #[test]
    fn any_json_at_any_path(json in any_json(), path in "[a-z_./~0-9]{0,20}", at_path in any::<bool>()) {
        let path = if at_path { path } else { "data.access_token".to_owned() };
        let fields = TokenFields::default().access_token(&path);
        for tokens in read(&answer(200, json.to_string()), fields).into_iter().flatten() {
            prop_assert!(fit_for_a_header(&tokens));
        }
    }

    #[test]
    fn any_token_is_taken_without_its_surroundings_or_not_at_all(access in any::<String>(), refresh in any::<String>(), expiry in any_json()) {
        let body = json!({"access_token": access, "refresh_token": refresh, "expires_in": expiry.clone(), "expires_at": expiry});
        for (n, result) in read(&answer(200, body.to_string()), TokenFields::default()).into_iter().enumerate() {
            if let Ok(tokens) = result {
                prop_assert!(fit_for_a_header(&tokens));
                prop_assert_eq!(tokens.access_token().unwrap().expose_secret(), access.split_whitespace().last().unwrap());
                // A refresh token in the body is ignored beside a cookie.
                if let (0 | 1, Some(token)) = (n, tokens.refresh_token()) {
                    let before = refresh.trim().strip_suffix(token.expose_secret());
                    prop_assert!(before.is_some_and(|scheme| scheme.is_empty() || scheme.ends_with(char::is_whitespace)));
                }
            }
        }
    }

    #[test]
    fn only_a_2xx_or_4xx_ends_a_session(status in 100..=999_u16, body in any_json()) {
        for result in read(&answer(status, body.to_string()), TokenFields::default()) {
            if let Err(error) = result
                && error.kind() == tower_auth_refresh::RefreshErrorKind::Rejected
            {
                let status = StatusCode::from_u16(status).unwrap();
                prop_assert!(status.is_success() || status.is_client_error());
            }
        }
    }

    #[test]
    fn a_cookies_value_is_taken_whole_or_not_at_all(value in "[ -~\\x80-\\xff]{0,30}", attributes in any_header()) {
        let answer = answer(200, r#"{"access_token":"a"}"#).header("set-cookie", format!("rt={value}; {attributes}"));
        if let Some(Ok(tokens)) = read(&answer, TokenFields::default()).pop()
            && let Some(token) = tokens.refresh_token()
        {
            prop_assert!(fit_for_a_header(&tokens));
            prop_assert!(value.contains(token.expose_secret()));
        }
    }
}
