//! The same programs by ureq and by `reqwest::blocking`, over real sockets.

use std::io::Read;
use std::net::TcpListener;

use http::Response;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::runtime::{Builder, Runtime};
use tower::BoxError;
use tower_auth_refresh_http::{AuthClient, JsonRefresh};
use tower_auth_refresh_testkit::{BODY_CHECKSUM, BODY_LENGTH, Checksum, Fault, Route, TestServer};

use super::*;

type Answer = Result<Response<Vec<u8>>, BoxError>;

/// An API, an authorization server, and a session of theirs.
struct World {
    session: Session,
    server: TestServer,
    runtime: Runtime,
}

/// A program that posts a text, with the token in this header.
type Program = fn(&Session, &str, &'static str, &[u8]) -> Result<Answer, NotRefreshed>;

const PROGRAMS: [Program; 2] = [by_ureq, by_reqwest];

fn by_ureq(session: &Session, url: &str, header: &'static str, text: &[u8]) -> Result<Answer, NotRefreshed> {
    let agent = ureq::Agent::config_builder().http_status_as_error(false).max_redirects(0).build().new_agent();
    let answer = session.send(
        |token| {
            let request = agent.post(url).header(header, token.bearer()).header(BODY_LENGTH, text.len().to_string());
            request.header(BODY_CHECKSUM, Checksum::of(text).to_string()).send(text)
        },
        |answer| answer.as_ref().is_ok_and(|response| is_challenge(response.status(), response.headers())),
    )?;
    Ok(answer.map_err(Into::into).and_then(|response| {
        let (head, mut body) = response.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?))
    }))
}

fn by_reqwest(session: &Session, url: &str, header: &'static str, text: &[u8]) -> Result<Answer, NotRefreshed> {
    let client = reqwest::blocking::Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = session.send(
        |token| {
            let request = client.post(url).header(header, token.bearer()).header(BODY_LENGTH, text.len());
            request.header(BODY_CHECKSUM, Checksum::of(text).to_string()).body(text.to_vec()).send()
        },
        |answer| answer.as_ref().is_ok_and(|response| is_challenge(response.status(), response.headers())),
    )?;
    Ok(answer.map_err(Into::into).and_then(|mut response| {
        let mut answer = Response::new(Vec::new());
        *answer.status_mut() = response.status();
        response.read_to_end(answer.body_mut())?;
        Ok(answer)
    }))
}

impl World {
    fn new() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = runtime.block_on(TestServer::start()).unwrap();
        let auth = AuthClient::new(Client::builder(TokioExecutor::new()).build_http());
        let refresh = JsonRefresh::new(auth, &server.url("/auth/refresh")).unwrap();
        let pair = server.sign_in("ada");
        let tokens = Tokens::new(access(&pair.access_token), super::refresh(&pair.refresh_token));
        let session = Session::start(tower_auth_refresh::Session::builder(refresh).tokens(tokens).build()).unwrap();
        Self { session, server, runtime }
    }

    fn post(&self, program: Program, text: &[u8]) -> Result<Answer, NotRefreshed> {
        program(&self.session, &self.server.url("/api/upload"), "authorization", text)
    }

    fn shut_down(self) {
        assert_eq!(self.server.violations(), []);
        assert_eq!(self.server.counters().body_mismatches, 0);
        drop(self.session);
        self.runtime.block_on(self.server.shutdown());
    }
}

#[test]
fn an_expired_token_is_refreshed_once_and_the_body_is_built_again() {
    for program in PROGRAMS {
        let world = World::new();
        world.server.expire_access_tokens();
        let text = vec![b'x'; 100_000];
        assert_eq!(world.post(program, &text).unwrap().unwrap().status(), 200);
        assert_eq!(world.post(program, &text).unwrap().unwrap().status(), 200);
        let counters = world.server.counters();
        assert_eq!((counters.refreshes, counters.api, counters.unauthorized()), (1, 3, 1));
        world.shut_down();
    }
}

#[test]
fn fifty_threads_that_the_api_refuses_at_once_make_one_refresh() {
    for program in PROGRAMS {
        let world = World::new();
        world.server.expire_access_tokens();
        world.server.hold_unauthorized_until(50);
        os::scope(|scope| {
            for _ in 0..50 {
                scope.spawn(|| assert_eq!(world.post(program, b"text").unwrap().unwrap().status(), 200));
            }
        });
        let counters = world.server.counters();
        assert_eq!((counters.refreshes, counters.api, counters.unauthorized()), (1, 100, 50));
        world.shut_down();
    }
}

#[test]
fn a_network_that_fails_during_the_refresh_signs_no_user_out() {
    for program in PROGRAMS {
        let world = World::new();
        world.server.expire_access_tokens();
        world.server.inject(Route::Refresh, Fault::drop_connection().times(1));
        let why = world.post(program, b"text").unwrap_err();
        assert!(matches!(why, NotRefreshed::Failed(_)) && !why.requires_sign_in(), "{why:?}");
        world.session.refresh().unwrap();
        assert_eq!(world.post(program, b"text").unwrap().unwrap().status(), 200);
        world.shut_down();
    }
}

#[test]
fn a_session_that_the_server_ends_requires_a_sign_in() {
    for program in PROGRAMS {
        let world = World::new();
        world.server.revoke("ada");
        assert!(matches!(world.post(program, b"text"), Err(NotRefreshed::Ended(_))));
        assert!(world.post(program, b"text").unwrap_err().requires_sign_in());
        assert_eq!(world.server.counters().api, 1);

        let pair = world.server.sign_in("ada");
        let tokens = Tokens::new(access(&pair.access_token), super::refresh(&pair.refresh_token));
        world.session.sign_in(tokens).unwrap();
        assert_eq!(world.post(program, b"text").unwrap().unwrap().status(), 200);
        world.shut_down();
    }
}

#[test]
fn an_api_that_cannot_be_reached_is_the_clients_own_error() {
    for program in PROGRAMS {
        let world = World::new();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let answer = program(&world.session, &format!("http://{closed}/"), "authorization", b"text");
        assert!(answer.unwrap().is_err());
        assert_eq!(world.server.counters().refreshes, 0);
        world.shut_down();
    }
}

#[test]
fn a_redirect_to_a_foreign_host_is_returned_and_no_token_goes_there() {
    for program in PROGRAMS {
        for header in ["authorization", "x-api-token"] {
            let world = World::new();
            let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
            foreign.set_nonblocking(true).unwrap();
            let location = format!("http://{}/", foreign.local_addr().unwrap());
            world.server.inject(Route::Api, Fault::status(307).header("location", &location));
            let answer = program(&world.session, &world.server.url("/api/notes"), header, b"text").unwrap();
            assert_eq!(answer.unwrap().status(), 307);
            assert!(foreign.accept().is_err(), "the foreign host was called");
            world.shut_down();
        }
    }
}
