//! Redirects, which are followed outside of the layer: by reqwest's rules, and with each hop checked.

use std::sync::Arc;

use futures_util::stream;
use http::{HeaderMap, Method};
use tower_auth_refresh_reqwest::tower_auth_refresh::replay::NotReplayable;
use tower_auth_refresh_reqwest::{ApiClient, AuthRefreshLayer, RefreshReport, ReqwestService, reqwest};

use crate::support::{
    Answer, Numbered, Seen, Server, builder, chain, client_of, client_with_own_header, expired, is_replayed, origin,
    redirect, report, service, status,
};

/// A server that redirects `/from/{status}` to `to`.
fn redirecting(to: String) -> impl Fn(&Seen) -> Answer {
    move |seen| match seen.path.strip_prefix("/from/") {
        Some(code) => redirect(code.parse().unwrap(), &to),
        None => status(200),
    }
}

#[tokio::test]
async fn each_hop_carries_the_token_and_is_replayed_on_its_own() {
    // The second hop finds the token expired, after the first has been accepted.
    let server = Server::start(|seen| match seen.path.as_str() {
        "/old" => redirect(302, "/new?page=2"),
        _ if seen.is_expired() => expired(),
        _ => status(200),
    })
    .await;
    let user = Numbered::new().await;
    let response = client_of(&server, &user.session).get(server.url("/old")).send().await.unwrap();
    assert!(is_replayed(&response));
    assert_eq!(response.url().as_str(), server.url("/new?page=2"));
    let seen: Vec<_> =
        server.take_seen().into_iter().map(|seen| (seen.path.clone(), seen.token().unwrap().to_owned())).collect();
    let expected = [("/old", "Bearer a1"), ("/new", "Bearer a1"), ("/new", "Bearer a2")];
    assert_eq!(seen, expected.map(|(path, token)| (path.to_owned(), token.to_owned())));
}

#[tokio::test]
async fn nothing_of_a_token_in_a_header_of_its_own_leaks_to_a_foreign_host() {
    for code in [301, 302, 303, 307, 308] {
        let foreign = Server::start(|_| status(200)).await;
        let server = Server::expiring(redirecting(foreign.url("/to"))).await;
        let user = Numbered::new().await;
        let response = client_with_own_header(&server, &user.session)
            .post(server.url(&format!("/from/{code}")))
            .header("cookie", "mine=1")
            .header("proxy-authorization", "Basic mine")
            .body("the body")
            .send()
            .await
            .unwrap();
        assert_eq!((response.status().as_u16(), response.url().as_str()), (200, foreign.url("/to").as_str()));
        assert!(report(&response).is_none());
        let tokens: Vec<_> =
            server.take_seen().iter().map(|seen| seen.header("x-api-token").unwrap().to_owned()).collect();
        assert_eq!(tokens, ["a1", "a2"]);

        let [seen] = foreign.take_seen().try_into().unwrap();
        for name in ["x-api-token", "authorization", "cookie", "proxy-authorization"] {
            assert_eq!(seen.header(name), None, "{name}");
        }
        assert!(!format!("{seen:?}").contains("a2"), "{seen:?}");
        let body = if code >= 307 { "the body" } else { "" };
        assert_eq!(seen.body, body);
    }
}

#[tokio::test]
async fn a_401_of_a_foreign_host_causes_no_refresh_and_has_no_report() {
    for own_header in [false, true] {
        let foreign = Server::start(|_| expired()).await;
        let server = Server::start(redirecting(foreign.url("/to"))).await;
        let user = Numbered::new().await;
        let api = if own_header { client_with_own_header } else { client_of };
        let response = api(&server, &user.session).get(server.url("/from/302")).send().await.unwrap();
        assert_eq!((response.status().as_u16(), report(&response).is_none(), user.refreshes()), (401, true, 0));
    }
}

#[tokio::test]
async fn credentials_of_the_caller_end_at_the_host_that_they_are_for() {
    let foreign = Server::start(|seen| if seen.path == "/1" { redirect(302, "/2") } else { status(200) }).await;
    let server = Server::start(redirecting(foreign.url("/1"))).await;
    let user = Numbered::new().await;
    client_of(&server, &user.session).get(server.url("/from/302")).bearer_auth("mine").send().await.unwrap();
    assert_eq!(server.take_seen()[0].token(), Some("Bearer mine"));
    let tokens: Vec<_> = foreign.take_seen().iter().map(|seen| seen.token().map(str::to_owned)).collect();
    assert_eq!(tokens, [None, None]);
}

#[tokio::test]
async fn a_way_back_from_a_foreign_host_has_the_token_unless_the_request_had_credentials_of_its_own() {
    let foreign = Server::start(|seen| redirect(307, seen.header("x-back").unwrap())).await;
    let server = Server::start(redirecting(foreign.url("/1"))).await;
    let user = Numbered::new().await;
    for own in [false, true] {
        for skip in [false, true] {
            let mut api = client_of(&server, &user.session);
            if skip {
                api = api.with_skip_auth();
            }
            let mut request = api.get(server.url("/from/302")).header("x-back", server.url("/back"));
            if own {
                request = request.bearer_auth("mine");
            }
            request.send().await.unwrap();
            let [_, back] = server.take_seen().try_into().unwrap();
            assert_eq!(back.token(), (!own && !skip).then_some("Bearer a1"), "{own} {skip}");
        }
    }
}

/// The bare client and ours, each with a cookie store.
async fn both(server: &Server) -> (reqwest::Client, ApiClient) {
    let bare = builder().cookie_store(true).build().unwrap();
    let service = ReqwestService::new(builder().cookie_store(true)).unwrap();
    (bare, ApiClient::new(Numbered::new().await.session, origin(&server.origin()), service))
}

/// Sends a request by both clients, and compares what the servers saw and what the caller sees.
async fn compare(
    (bare, api): &(reqwest::Client, ApiClient),
    servers: &[&Server],
    make: impl Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    url: &str,
) {
    let mut outcomes = Vec::new();
    for ours in [false, true] {
        let request = make(bare.get(url)).build().unwrap();
        let result = if ours { api.execute(request).await } else { bare.execute(request).await };
        let result = match result {
            Ok(response) => {
                format!("{} {} {:?}", response.status(), response.url(), response.headers().get("location"))
            }
            Err(error) => format!("{:?} {}", chain(&error), error.is_redirect()),
        };
        let seen = servers.iter().flat_map(|server| server.take_seen()).map(Seen::without_token);
        outcomes.push((result, seen.collect::<Vec<_>>()));
    }
    assert_eq!(outcomes[0], outcomes[1]);
}

#[tokio::test]
async fn methods_bodies_headers_and_cookies_of_a_hop_are_those_of_reqwest() {
    let foreign = Server::start(|_| status(200)).await;
    for to in ["/to".to_owned(), foreign.url("/to?a=1#fragment"), "http:///".to_owned(), "ftp://example.com".to_owned()]
    {
        let redirecting = redirecting(to);
        let server = Server::start(move |seen| {
            let mut answer = redirecting(seen);
            let cookie = format!("last={}{}; Path=/", seen.method, seen.path);
            answer.headers_mut().insert("set-cookie", cookie.parse().unwrap());
            answer
        })
        .await;
        let clients = both(&server).await;
        for code in [300, 301, 302, 303, 304, 307, 308] {
            for method in [Method::GET, Method::HEAD, Method::POST, Method::PUT] {
                let url = server.url(&format!("/from/{code}#fragment"));
                let make = |request: reqwest::RequestBuilder| {
                    let (client, request) = request.build_split();
                    let mut request = request.unwrap();
                    *request.method_mut() = method.clone();
                    reqwest::RequestBuilder::from_parts(client, request).header("x-own", "1").header("referer", "mine")
                };
                compare(&clients, &[&server, &foreign], make, &url).await;
                let headers: HeaderMap = [("content-encoding", "identity"), ("content-type", "text/plain")]
                    .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
                    .into_iter()
                    .collect();
                let with_body = |request| make(request).headers(headers.clone()).body("the body");
                compare(&clients, &[&server, &foreign], with_body, &url).await;
                let streamed = |request| {
                    let chunks = stream::iter([Ok::<_, std::io::Error>("the "), Ok("body")]);
                    make(request).body(reqwest::Body::wrap_stream(chunks))
                };
                compare(&clients, &[&server, &foreign], streamed, &url).await;
            }
        }
    }
}

#[tokio::test]
async fn a_chain_that_is_too_long_fails_as_with_reqwest() {
    let server = Server::start(|seen| match seen.path[1..].parse::<u32>().unwrap() {
        0 => status(200),
        left => redirect(302, &format!("/{}", left - 1)),
    })
    .await;
    let clients = both(&server).await;
    for length in [9, 10, 11] {
        compare(&clients, &[&server], |request| request, &server.url(&format!("/{length}"))).await;
    }

    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    assert_eq!(api.clone().with_max_redirects(2).get(server.url("/2")).send().await.unwrap().status(), 200);
    assert_eq!(server.take_seen().len(), 3);
    for (max, hops) in [(0, 1), (1, 2)] {
        let error = api.clone().with_max_redirects(max).get(server.url("/2")).send().await.unwrap_err();
        assert!(error.is_redirect());
        assert_eq!(chain(&error)[1], "too many redirects");
        assert_eq!(server.take_seen().len(), hops);
    }
    let response = api.clone().without_redirects().get(server.url("/2")).send().await.unwrap();
    assert_eq!((response.status().as_u16(), response.url().path()), (302, "/2"));
    // The mark of one request's last hop is none for the requests beside it.
    let limited = api.clone().with_max_redirects(0);
    let (limited, free) = tokio::join!(limited.get(server.url("/3")).send(), api.get(server.url("/3")).send());
    assert!(limited.unwrap_err().is_redirect());
    assert_eq!(free.unwrap().status(), 200);
}

#[tokio::test]
async fn a_referer_is_sent_unless_it_is_switched_off() {
    let server = Server::start(redirecting("/to".to_owned())).await;
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    let from = server.url("/from/302");
    for (api, referer) in [(api.clone(), Some(from.as_str())), (api.without_referer(), None)] {
        api.get(&from).send().await.unwrap();
        assert_eq!(server.take_seen()[1].header("referer"), referer);
    }
}

#[tokio::test]
async fn a_challenge_before_a_redirect_and_one_behind_it_are_both_replayed_with_the_body() {
    // Each path expects a token of its own.
    let server = Server::start(|seen| match (seen.path.as_str(), seen.token()) {
        ("/first", Some("Bearer a2")) => redirect(308, "/second"),
        ("/second", Some("Bearer a3")) => status(201),
        _ => expired(),
    })
    .await;
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    let response = api.put(server.url("/first")).body("the body").send().await.unwrap();
    assert_eq!((response.status().as_u16(), user.refreshes()), (201, 2));
    let seen = server.take_seen();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().all(|seen| seen.body == "the body" && seen.method == Method::PUT));
}

#[tokio::test]
async fn the_settings_of_a_request_hold_for_each_of_its_hops() {
    let server = Server::start(|seen| match (seen.path.as_str(), seen.is_expired()) {
        ("/old", _) => redirect(308, "/new"),
        (_, true) => expired(),
        _ => status(200),
    })
    .await;
    let user = Numbered::new().await;
    let layer = AuthRefreshLayer::per_request(origin(&server.origin()));
    let api = ApiClient::from_layer(layer, service()).with_session(user.session.clone()).with_replay_limit(3);
    let response = api.post(server.url("/old")).body("four").send().await.unwrap();
    let why = report(&response);
    assert!(matches!(why, Some(RefreshReport::NotReplayable(NotReplayable::TooLarge))), "{why:?}");
    assert_eq!(server.take_seen().iter().filter(|seen| seen.token() == Some("Bearer a1")).count(), 2);
}

#[tokio::test]
async fn requests_of_several_threads_are_followed_at_once() {
    let server = Arc::new(Server::expiring(redirecting("/to".to_owned())).await);
    let user = Numbered::new().await;
    let api = client_of(&server, &user.session);
    let calls: Vec<_> = (0..20).map(|_| tokio::spawn(api.get(server.url("/from/302")).send())).collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().url().path(), "/to");
    }
    assert_eq!(user.refreshes(), 1);
}
