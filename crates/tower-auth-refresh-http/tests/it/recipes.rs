//! Every recipe, with the documented answers of its provider.

use http::header::{COOKIE, SET_COOKIE};
use serde_json::{Map, json};
use tower_auth_refresh::{RefreshError, Tokens};

use crate::support::{Answer, Scripted, access, answer, old_tokens, outcome, refresh};

/// The tokens that a session of any recipe holds: with those of the cookie recipe.
fn tokens() -> Tokens {
    let cookies = json!({"csrf_refresh_token": {"value": "c1"}});
    old_tokens().with_extra(Map::from_iter([("kept_cookies".to_owned(), cookies)]))
}

/// Checks that the request presents the refresh token, to the endpoint of the recipe.
fn check_request(scripted: &Scripted, name: &str) {
    let request = scripted.only();
    let cookie = request.header(COOKIE.as_str()).unwrap_or_default();
    let authorization = request.header("authorization").unwrap_or_default();
    let presented = [&request.body, cookie, authorization].iter().any(|place| place.contains("old-refresh"));
    assert!(presented, "{name}: {request:?}");
    assert_eq!(request.uri.scheme_str(), Some("https"), "{name}");
}

/// Checks the outcome of an answer: for a success, the tokens.
fn check(name: &str, expected: Expected, result: &Result<Tokens, RefreshError>) {
    match (expected, result) {
        (Expected::Tokens(new_access, new_refresh), Ok(tokens)) => {
            assert_eq!((access(tokens), refresh(tokens)), (new_access, new_refresh), "{name}");
        }
        (Expected::Tokens(..), Err(error)) => panic!("{name}: {error:?}"),
        (Expected::Dead, result) => assert_eq!(outcome(result), "rejected", "{name}: {result:?}"),
        (Expected::Kept(kind), result) => assert_eq!(outcome(result), kind, "{name}: {result:?}"),
    }
}

#[derive(Clone, Copy)]
enum Expected {
    Tokens(&'static str, Option<&'static str>),
    Dead,
    Kept(&'static str),
}

use Expected::{Dead, Kept};

const BOTH: Expected = Expected::Tokens("a2", Some("r2"));
const ACCESS: Expected = Expected::Tokens("a2", None);

macro_rules! recipe {
    ($name:ident, [$(($expected:expr, $answer:expr)),* $(,)?]) => {
        mod $name {
            use super::*;

            include!(concat!("../../recipes/", stringify!($name), ".rs"));

            #[tokio::test]
            async fn its_documented_answers_have_their_outcomes() {
                let cases: &[(Expected, Answer)] = &[$(($expected, $answer)),*];
                for (expected, answer) in cases {
                    let scripted = Scripted::with([answer.clone()]);
                    let result = $name(scripted.client()).unwrap().refresh(&tokens()).await;
                    check(&format!("{}, {answer:?}", stringify!($name)), *expected, &result);
                    check_request(&scripted, stringify!($name));
                }
            }
        }
    };
}

fn oauth_error(status: u16, code: &str, description: &str) -> Answer {
    answer(status, json!({"error": code, "error_description": description}).to_string())
}

fn bearer(expires_in: u32) -> Answer {
    let answered =
        json!({"access_token": "a2", "refresh_token": "r2", "expires_in": expires_in, "token_type": "Bearer"});
    answer(200, answered.to_string())
}

recipe!(
    auth0,
    [
        (BOTH, bearer(86_400)),
        (Dead, oauth_error(403, "invalid_grant", "Unknown or invalid refresh token.")),
        (Kept("misconfigured"), oauth_error(401, "access_denied", "Unauthorized")),
        (Kept("unavailable"), oauth_error(429, "too_many_requests", "Global limit has been reached")),
    ]
);

recipe!(
    atlassian,
    [
        (BOTH, answer(200, r#"{"access_token":"a2","refresh_token":"r2","expires_in":3600,"scope":"read:jira-work"}"#)),
        (Dead, oauth_error(403, "invalid_grant", "Unknown or invalid refresh token.")),
        (Kept("misconfigured"), oauth_error(401, "access_denied", "Unauthorized")),
    ]
);

recipe!(
    okta,
    [
        (BOTH, bearer(3_600)),
        (Dead, oauth_error(400, "invalid_grant", "The refresh token is invalid or expired.")),
        (
            Kept("misconfigured"),
            oauth_error(401, "invalid_client", "The client secret supplied for a confidential client is invalid.")
        ),
        (
            Kept("unavailable for 60 s"),
            answer(
                429,
                r#"{"errorCode":"E0000047","errorSummary":"API call exceeded rate limit due to too many requests."}"#
            )
            .header("x-rate-limit-limit", "300")
            .header("x-rate-limit-remaining", "0")
            .header("x-rate-limit-reset", "1800000060")
            .header("date", "Fri, 15 Jan 2027 08:00:00 GMT")
        ),
    ]
);

recipe!(
    entra,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"access_token":"a2","token_type":"Bearer","expires_in":3599,"scope":"User.Read","refresh_token":"r2","id_token":"i2"}"#
            )
        ),
        (
            Dead,
            answer(
                400,
                r#"{"error":"invalid_grant","error_description":"AADSTS700082: The refresh token has expired due to inactivity.","error_codes":[700082],"trace_id":"t","correlation_id":"c"}"#
            )
        ),
        (
            Dead,
            answer(
                400,
                r#"{"error":"interaction_required","error_description":"AADSTS50076: You must use multi-factor authentication.","error_codes":[50076],"suberror":"basic_action"}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(
                401,
                r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret provided.","error_codes":[7000215]}"#
            )
        ),
    ]
);

recipe!(
    google,
    [
        (
            ACCESS,
            answer(
                200,
                r#"{"access_token":"a2","expires_in":3920,"scope":"https://www.googleapis.com/auth/drive.metadata.readonly","token_type":"Bearer"}"#
            )
        ),
        (Dead, oauth_error(400, "invalid_grant", "Token has been expired or revoked.")),
        (Kept("misconfigured"), oauth_error(401, "invalid_client", "The OAuth client was not found.")),
    ]
);

recipe!(
    cognito,
    [
        (ACCESS, answer(200, r#"{"access_token":"a2","id_token":"i2","token_type":"Bearer","expires_in":3600}"#)),
        (BOTH, bearer(3_600)),
        (Dead, answer(400, r#"{"error":"invalid_grant"}"#)),
        (Kept("misconfigured"), answer(400, r#"{"error":"invalid_client"}"#)),
    ]
);

fn firebase_error(message: &str) -> Answer {
    answer(400, json!({"error": {"code": 400, "message": message, "status": "INVALID_ARGUMENT"}}).to_string())
}

recipe!(
    firebase,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"expires_in":"3600","token_type":"Bearer","refresh_token":"r2","id_token":"a2","user_id":"u","project_id":"1234567890"}"#
            )
        ),
        (Dead, firebase_error("TOKEN_EXPIRED")),
        (Dead, firebase_error("USER_DISABLED")),
        (Dead, firebase_error("USER_NOT_FOUND")),
        (Dead, firebase_error("INVALID_REFRESH_TOKEN")),
        (Kept("misconfigured"), firebase_error("API key not valid. Please pass a valid API key.")),
        (Kept("misconfigured"), firebase_error("INVALID_GRANT_TYPE")),
    ]
);

recipe!(
    supabase,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"access_token":"a2","token_type":"bearer","expires_in":3600,"expires_at":4102444800,"refresh_token":"r2","user":{"id":"u"}}"#
            )
        ),
        (
            Dead,
            answer(
                400,
                r#"{"code":400,"error_code":"refresh_token_not_found","msg":"Invalid Refresh Token: Refresh Token Not Found"}"#
            )
        ),
        (Dead, answer(400, r#"{"code":"refresh_token_already_used","message":"Invalid Refresh Token: Already Used"}"#)),
        (Dead, oauth_error(400, "invalid_grant", "Invalid Refresh Token: Refresh Token Not Found")),
        (
            Kept("misconfigured"),
            answer(
                401,
                r#"{"message":"Invalid API key","hint":"Double check your Supabase `anon` or `service_role` API key."}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(409, r#"{"code":409,"error_code":"conflict","msg":"Too many concurrent token refresh requests"}"#)
        ),
        (
            Kept("unavailable"),
            answer(429, r#"{"code":429,"error_code":"over_request_rate_limit","msg":"Request rate limit reached"}"#)
        ),
    ]
);

recipe!(
    keycloak,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"access_token":"a2","expires_in":300,"refresh_expires_in":1800,"refresh_token":"r2","token_type":"Bearer","not-before-policy":0,"session_state":"s","scope":"profile"}"#
            )
        ),
        (Dead, oauth_error(400, "invalid_grant", "Token is not active")),
        (Dead, oauth_error(400, "invalid_grant", "Session not active")),
        (
            Kept("misconfigured"),
            oauth_error(401, "unauthorized_client", "Invalid client or Invalid client credentials")
        ),
    ]
);

recipe!(
    github,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"access_token":"a2","expires_in":28800,"refresh_token":"r2","refresh_token_expires_in":15811200,"scope":"","token_type":"bearer"}"#
            )
        ),
        (Dead, oauth_error(200, "bad_refresh_token", "The refresh token passed is incorrect or expired.")),
        (
            Kept("misconfigured"),
            oauth_error(
                200,
                "incorrect_client_credentials",
                "The client_id and/or client_secret passed are incorrect."
            )
        ),
    ]
);

recipe!(
    slack,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"ok":true,"app_id":"A","authed_user":{"id":"U","scope":"chat:write","access_token":"a2","token_type":"user","refresh_token":"r2","expires_in":43200},"team":{"id":"T"}}"#
            )
        ),
        (Dead, answer(200, r#"{"ok":false,"error":"invalid_refresh_token"}"#)),
        (Kept("misconfigured"), answer(200, r#"{"ok":false,"error":"bad_client_secret"}"#)),
        (
            Kept("unavailable for 30 s"),
            answer(429, r#"{"ok":false,"error":"ratelimited"}"#).header("retry-after", "30")
        ),
    ]
);

recipe!(
    salesforce,
    [
        (
            ACCESS,
            answer(
                200,
                r#"{"access_token":"a2","signature":"s","scope":"refresh_token api","instance_url":"https://domain.my.salesforce.com","id":"https://login.salesforce.com/id/x/y","token_type":"Bearer","issued_at":"1558553873237"}"#
            )
        ),
        (Dead, oauth_error(400, "invalid_grant", "expired access/refresh token")),
        (Kept("misconfigured"), oauth_error(400, "invalid_client", "invalid client credentials")),
    ]
);

recipe!(
    hubspot,
    [
        (BOTH, answer(200, r#"{"token_type":"bearer","refresh_token":"r2","access_token":"a2","expires_in":1800}"#)),
        (
            Dead,
            answer(
                400,
                r#"{"status":"BAD_REFRESH_TOKEN","message":"missing or invalid refresh token","correlationId":"c"}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(400, r#"{"status":"BAD_CLIENT_ID","message":"missing or unknown client id","correlationId":"c"}"#)
        ),
    ]
);

recipe!(
    strava,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"token_type":"Bearer","access_token":"a2","expires_at":4102444800,"expires_in":20566,"refresh_token":"r2"}"#
            )
        ),
        (
            Dead,
            answer(
                400,
                r#"{"message":"Bad Request","errors":[{"resource":"RefreshToken","field":"refresh_token","code":"invalid"}]}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(
                400,
                r#"{"message":"Bad Request","errors":[{"resource":"Application","field":"client_id","code":"invalid"}]}"#
            )
        ),
        (
            Kept("unavailable"),
            answer(
                429,
                r#"{"message":"Rate Limit Exceeded","errors":[{"resource":"Application","field":"rate limit","code":"exceeded"}]}"#
            )
        ),
    ]
);

recipe!(
    fitbit,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"access_token":"a2","expires_in":28800,"refresh_token":"r2","scope":"activity","token_type":"Bearer","user_id":"u"}"#
            )
        ),
        (
            Dead,
            answer(
                400,
                r#"{"errors":[{"errorType":"invalid_grant","message":"Refresh token invalid: r1. Visit https://dev.fitbit.com/docs/oauth2"}],"success":false}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(
                401,
                r#"{"errors":[{"errorType":"invalid_client","message":"Invalid authorization header format."}],"success":false}"#
            )
        ),
    ]
);

recipe!(
    xero,
    [
        (BOTH, bearer(1_800)),
        (Dead, answer(400, r#"{"error":"invalid_grant"}"#)),
        (Kept("misconfigured"), answer(400, r#"{"error":"invalid_client"}"#)),
    ]
);

recipe!(
    quickbooks,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"token_type":"bearer","expires_in":3600,"refresh_token":"r2","x_refresh_token_expires_in":8726400,"access_token":"a2"}"#
            )
        ),
        (Dead, oauth_error(400, "invalid_grant", "Incorrect or invalid refresh token")),
        (Kept("misconfigured"), answer(401, r#"{"error":"invalid_client"}"#)),
    ]
);

recipe!(
    zoho,
    [
        (
            ACCESS,
            answer(
                200,
                r#"{"access_token":"a2","api_domain":"https://www.zohoapis.com","token_type":"Bearer","expires_in":3600}"#
            )
        ),
        (Dead, answer(200, r#"{"error":"invalid_code"}"#)),
        (Kept("misconfigured"), answer(200, r#"{"error":"invalid_client"}"#)),
        (
            Kept("misconfigured"),
            answer(
                400,
                r#"{"error":"Access Denied","error_description":"You have made too many requests continuously. Please try again after some time.","status":"failure"}"#
            )
        ),
    ]
);

recipe!(
    django_simplejwt,
    [
        (ACCESS, answer(200, r#"{"access":"a2"}"#)),
        (BOTH, answer(200, r#"{"access":"a2","refresh":"r2"}"#)),
        (
            Dead,
            answer(401, r#"{"detail":"Token is blacklisted","code":"token_not_valid"}"#)
                .header("www-authenticate", r#"Bearer realm="api""#)
        ),
        (Kept("misconfigured"), answer(400, r#"{"refresh":["This field is required."]}"#)),
        (Kept("misconfigured"), answer(301, "").header("location", "/api/token/refresh/")),
    ]
);

recipe!(
    django_oauth_toolkit,
    [
        (
            BOTH,
            answer(
                200,
                r#"{"access_token":"a2","expires_in":36000,"token_type":"Bearer","scope":"read write","refresh_token":"r2"}"#
            )
        ),
        (Dead, answer(400, r#"{"error":"invalid_grant"}"#)),
        (Kept("misconfigured"), answer(401, r#"{"error":"invalid_client"}"#)),
    ]
);

recipe!(
    laravel_passport,
    [
        (BOTH, bearer(31_536_000)),
        (Dead, oauth_error(400, "invalid_grant", "The refresh token is invalid.")),
        (
            Dead,
            answer(
                401,
                r#"{"error":"invalid_request","error_description":"The refresh token is invalid.","hint":"Token has been revoked","message":"The refresh token is invalid."}"#
            )
        ),
        (
            Kept("misconfigured"),
            oauth_error(401, "invalid_client", "Client authentication failed")
                .header("www-authenticate", "Basic realm=\"OAuth\"")
        ),
        (
            Kept("misconfigured"),
            answer(400, r#"{"error":"invalid_request","hint":"Check the `refresh_token` parameter"}"#)
        ),
    ]
);

recipe!(
    flask_jwt_extended,
    [
        (ACCESS, answer(200, r#"{"access_token":"a2"}"#)),
        (Dead, answer(401, r#"{"msg":"Token has expired"}"#)),
        (Dead, answer(401, r#"{"msg":"Token has been revoked"}"#)),
        (Dead, answer(422, r#"{"msg":"Signature verification failed"}"#)),
        (Kept("misconfigured"), answer(404, "<!doctype html>\n<title>404 Not Found</title>")),
    ]
);

recipe!(
    flask_jwt_extended_cookies,
    [
        (
            ACCESS,
            answer(200, r#"{"msg":"refreshed"}"#)
                .header(SET_COOKIE.as_str(), "access_token_cookie=a2; HttpOnly; Path=/")
                .header(SET_COOKIE.as_str(), "csrf_access_token=c2; Path=/")
        ),
        (Dead, answer(401, r#"{"msg":"Token has expired"}"#)),
        (Dead, answer(422, r#"{"msg":"Signature verification failed"}"#)),
        (Kept("misconfigured"), answer(401, r#"{"msg":"CSRF double submit tokens do not match"}"#)),
    ]
);

recipe!(
    directus,
    [
        (BOTH, answer(200, r#"{"data":{"access_token":"a2","expires":900000,"refresh_token":"r2"}}"#)),
        (
            Dead,
            answer(
                401,
                r#"{"errors":[{"message":"Invalid user credentials.","extensions":{"code":"INVALID_CREDENTIALS"}}]}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(400, r#"{"errors":[{"message":"Invalid payload.","extensions":{"code":"INVALID_PAYLOAD"}}]}"#)
        ),
    ]
);

recipe!(
    strapi,
    [
        (ACCESS, answer(200, r#"{"jwt":"a2"}"#)),
        (BOTH, answer(200, r#"{"jwt":"a2","refreshToken":"r2"}"#)),
        (
            Dead,
            answer(
                401,
                r#"{"data":null,"error":{"status":401,"name":"UnauthorizedError","message":"Invalid refresh token","details":{}}}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(
                404,
                r#"{"data":null,"error":{"status":404,"name":"NotFoundError","message":"Not Found","details":{}}}"#
            )
        ),
    ]
);

recipe!(
    pocketbase,
    [
        (
            Expected::Tokens("a2", Some("a2")),
            answer(200, r#"{"token":"a2","record":{"collectionName":"users","id":"u"}}"#)
        ),
        (
            Dead,
            answer(
                401,
                r#"{"status":401,"message":"The request requires valid record authorization token to be set.","data":{}}"#
            )
        ),
        (Dead, answer(404, r#"{"status":404,"message":"Missing auth record context.","data":{}}"#)),
        (
            Kept("misconfigured"),
            answer(
                403,
                r#"{"status":403,"message":"The authorized record model is not allowed to perform this action.","data":{}}"#
            )
        ),
    ]
);

recipe!(
    graphql,
    [
        (BOTH, answer(200, r#"{"data":{"refresh":{"accessToken":"a2","refreshToken":"r2"}}}"#)),
        (
            Dead,
            answer(
                200,
                r#"{"errors":[{"message":"invalid refresh token","extensions":{"code":"UNAUTHENTICATED"}}],"data":null}"#
            )
        ),
        (
            Kept("misconfigured"),
            answer(200, r#"{"errors":[{"message":"boom","extensions":{"code":"INTERNAL_SERVER_ERROR"}}],"data":null}"#)
        ),
        (
            Kept("misconfigured"),
            answer(400, r#"{"errors":[{"message":"Syntax Error","extensions":{"code":"GRAPHQL_PARSE_FAILED"}}]}"#)
        ),
    ]
);
