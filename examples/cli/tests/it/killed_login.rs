//! A `login` that is killed, or gets a signal, at each of its points. Until the new tokens are stored, the session of the
//! user before goes on.

use std::any::Any;
use std::fs::{self, File, OpenOptions};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::process::Child;
use tower_auth_refresh_reqwest::reqwest::redirect::Policy;
use tower_auth_refresh_reqwest::reqwest::{self, Client, Url};
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::sign_in::{BrowserLogin, code_of, login_with_scope, page};
use crate::support::{
    Ended, Home, fill, full_stdout, home_with_expired_token, locked, send, until, until_it_has_opened, until_it_says,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Means {
    Browser,
    Device,
}

/// A point of a sign-in at which the process waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The endpoints of the issuer are requested.
    Discovery,
    /// The keys of the issuer are requested, before the user is asked for anything.
    Keys,
    /// A code for the device is requested.
    CodeRequested,
    /// The address is shown to the user, and the code for it if there is one.
    Shown,
    /// The redirect has brought the code, and the connection to the token endpoint isn't up.
    CodeReceived,
    /// The server has the code and has not processed it.
    CodeSent,
    /// The server has issued the tokens, and the answer is on its way.
    TokensIssued,
    /// The key of the ID token is newer than the sign-in, and the keys are requested again.
    KeysOfTheIdToken,
    /// The file that is to take the place of the profile is open, and there is no room in it.
    ProfileWrite,
    /// The profile is written, and another process has the lock of the session's files.
    BeforeTheWrite,
    /// The tokens are stored, and the reader of the output doesn't read.
    Written,
}

const POINTS: [Point; 11] = [
    Point::Discovery,
    Point::Keys,
    Point::CodeRequested,
    Point::Shown,
    Point::CodeReceived,
    Point::CodeSent,
    Point::TokensIssued,
    Point::KeysOfTheIdToken,
    Point::ProfileWrite,
    Point::BeforeTheWrite,
    Point::Written,
];

impl Point {
    fn is_of(self, means: Means) -> bool {
        match self {
            Self::CodeRequested => means == Means::Device,
            Self::CodeReceived => means == Means::Browser,
            _ => true,
        }
    }

    fn has_id_token(self) -> bool {
        matches!(self, Self::Keys | Self::KeysOfTheIdToken)
    }

    /// The number of faults by which the server brings the process to this point.
    fn faults(self) -> u64 {
        match self {
            Self::Shown | Self::ProfileWrite | Self::BeforeTheWrite | Self::Written => 0,
            Self::Discovery | Self::CodeReceived | Self::CodeSent | Self::TokensIssued => 1,
            Self::Keys | Self::CodeRequested => 2,
            Self::KeysOfTheIdToken => 4,
        }
    }
}

/// The user's part of a sign-in.
enum Consent {
    /// The redirect to the app, which the browser has not followed yet.
    Redirect(Url),
    /// The code that the app shows.
    Code(String),
}

impl Consent {
    /// Waits until the process asks for it.
    async fn asked_for(means: Means, mut process: Child, server: &TestServer) -> (Child, Self) {
        match means {
            Means::Browser => {
                let BrowserLogin { process, mut url } = BrowserLogin::of(process).await;
                url.query_pairs_mut().append_pair("login_hint", "grace");
                let client = Client::builder().redirect(Policy::none()).build().unwrap();
                let redirect = client.get(url).send().await.unwrap().headers()["location"].to_str().unwrap().to_owned();
                (process, Self::Redirect(Url::parse(&redirect).unwrap()))
            }
            Means::Device => {
                let code = code_of(&mut process, server).await;
                (process, Self::Code(code))
            }
        }
    }

    fn give(self, server: &TestServer) {
        match self {
            // The browser gets no page if the process is killed.
            Self::Redirect(url) => drop(tokio::spawn(reqwest::get(url))),
            Self::Code(code) => assert!(server.approve_device(&code, "grace")),
        }
    }
}

/// A sign-in as grace where ada was signed in, whose access token has expired.
struct Scene {
    server: TestServer,
    home: Home,
    point: Point,
    /// The means by which the process is held up.
    held: Vec<Box<dyn Any>>,
}

impl Scene {
    /// Returns the process that waits at this point.
    async fn at(means: Means, point: Point) -> (Child, Self) {
        println!("{means:?} {point:?}");
        let server = TestServer::start().await.unwrap();
        let home = home_with_expired_token(&server).await;
        let (lock, record) = (home.file(".lock").unwrap(), home.file(".record").unwrap());
        let before = fs::read(&record).unwrap();
        let mut held: Vec<Box<dyn Any>> = Vec::new();
        let token_endpoint = (point == Point::CodeReceived).then(BusyPort::new);
        inject_before_the_code(point, &server, token_endpoint.as_ref());

        let mut login = login_with_scope(if point.has_id_token() { "openid" } else { "notes" }, &home, &server);
        match means {
            Means::Browser => login.env("BROWSER", "true"),
            Means::Device => login.arg("--device"),
        };
        if point == Point::Written {
            let (stdout, reader) = full_stdout();
            login.stdout(stdout);
            held.push(Box::new(reader));
        }
        let mut process = login.spawn().unwrap();
        if !matches!(point, Point::Discovery | Point::Keys | Point::CodeRequested) {
            let consent;
            (process, consent) = Consent::asked_for(means, process, &server).await;
            inject_after_the_code(point, &server);
            let draft = home.profile().with_extension(format!("{}.new", process.id().unwrap()));
            match point {
                Point::ProfileWrite => held.push(Box::new(full_fifo(&draft))),
                Point::BeforeTheWrite => held.push(Box::new(locked(&lock))),
                _ => {}
            }
            if point != Point::Shown {
                consent.give(&server);
            }
            match point {
                Point::ProfileWrite => until_it_has_opened(&process, &draft).await,
                Point::BeforeTheWrite => until_it_has_opened(&process, &lock).await,
                Point::Written => until("the tokens are stored", || fs::read(&record).unwrap() != before).await,
                _ => {}
            }
        }
        until("the request arrives", || server.counters().faults == point.faults()).await;
        if let Some(port) = token_endpoint {
            until("the process connects", || port.is_asked_for()).await;
            held.push(Box::new(port));
        }
        (process, Self { server, home, point, held })
    }

    /// The user is `user`, with tokens that were never used twice, and nothing is in the way of another sign-in.
    async fn expect_signed_in_as(self, user: &str) {
        let Self { server, home, point, held } = self;
        drop(held);
        server.clear_faults();
        let profile: Value = serde_json::from_slice(&fs::read(home.profile()).unwrap()).unwrap();
        let is_new = matches!(point, Point::BeforeTheWrite | Point::Written);
        assert_eq!(profile["scope"], if is_new { json!("notes") } else { Value::Null });
        let answer = home.run(&["call", "GET", "/api/notes"]).await;
        assert!(answer.expect_success().contains(user), "{answer:?}");
        assert_eq!(server.violations(), []);

        let mut again = BrowserLogin::start(&home, &server, &[]).await;
        again.url.query_pairs_mut().append_pair("login_hint", "lin");
        page(again.url).await;
        Ended::of(again.process).await.expect_success();
        assert!(home.run(&["call", "GET", "/api/notes"]).await.expect_success().contains("lin"));
        assert_eq!(server.violations(), []);
    }
}

/// Holds the process up before the user is asked for anything, or prepares the metadata for a later point.
fn inject_before_the_code(point: Point, server: &TestServer, token_endpoint: Option<&BusyPort>) {
    let set = |name: &'static str, url: String| Fault::alter(move |metadata| metadata[name] = (&*url).into()).times(1);
    match point {
        Point::Discovery => server.inject(Route::SignIn, Fault::hang().times(1)),
        Point::CodeRequested => {
            server.inject(Route::SignIn, Fault::alter(|_metadata| {}).times(1));
            server.inject(Route::SignIn, Fault::hang().times(1));
        }
        Point::Keys | Point::KeysOfTheIdToken => {
            server.inject(Route::SignIn, set("jwks_uri", server.url("/keys")));
            if point == Point::KeysOfTheIdToken {
                let none = Fault::status(200).header("content-type", "application/json").body(r#"{"keys":[]}"#);
                server.inject(Route::Other, none.times(1));
            }
            server.inject(Route::Other, Fault::hang().times(1));
        }
        _ => {
            if let Some(port) = token_endpoint {
                server.inject(Route::SignIn, set("token_endpoint", format!("http://{}/token", port.address)));
            }
        }
    }
}

/// Holds the process up once the user has consented. Only the token endpoint is called from then on.
fn inject_after_the_code(point: Point, server: &TestServer) {
    let fault = match point {
        Point::CodeSent => Fault::hang(),
        Point::TokensIssued => Fault::hang().after_processing(),
        Point::KeysOfTheIdToken => {
            let issuer = server.origin();
            Fault::alter(move |answer| answer["id_token"] = id_token(&issuer).into())
        }
        _ => return,
    };
    server.inject(Route::SignIn, fault.times(1));
}

/// An ID token for the app, signed by a key that no set of keys has.
fn id_token(issuer: &str) -> String {
    let part = |part: Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let header = json!({"alg": "ES256", "kid": "new"});
    let claims = json!({"iss": issuer, "aud": "app", "sub": "7", "iat": 1_700_000_000, "exp": 4_000_000_000_u32});
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode([1; 64]))
}

/// A port whose queue of connections is full: a further connection waits for room.
struct BusyPort {
    address: SocketAddr,
    _listener: tokio::net::TcpListener,
    _queued: TcpStream,
}

impl BusyPort {
    fn new() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        // Room for one more than this.
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, _queued: TcpStream::connect(address).unwrap(), _listener: listener }
    }

    /// Returns `true` if a connection waits: its state is `SYN_SENT`.
    fn is_asked_for(&self) -> bool {
        let connecting = format!(" 0100007F:{:04X} 02 ", self.address.port());
        fs::read_to_string("/proc/net/tcp").unwrap().contains(&connecting)
    }
}

/// A file in which there is room for no byte more.
fn full_fifo(path: &Path) -> File {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let mut fifo = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path).unwrap();
    fill(&mut fifo);
    fifo
}

#[tokio::test]
async fn a_login_in_the_browser_that_is_killed_at_any_point_costs_no_session() {
    killed_at_each_point(Means::Browser).await;
}

#[tokio::test]
async fn a_login_by_device_that_is_killed_at_any_point_costs_no_session() {
    killed_at_each_point(Means::Device).await;
}

async fn killed_at_each_point(means: Means) {
    for point in POINTS.into_iter().filter(|point| point.is_of(means)) {
        let (mut process, scene) = Scene::at(means, point).await;
        process.kill().await.unwrap();
        scene.expect_signed_in_as(if point == Point::Written { "grace" } else { "ada" }).await;
    }
}

#[tokio::test]
async fn a_signal_at_any_point_of_a_login_gives_it_up_unless_the_tokens_are_to_be_written() {
    for point in POINTS {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let means = if point.is_of(Means::Browser) { Means::Browser } else { Means::Device };
            let (mut process, mut scene) = Scene::at(means, point).await;
            send(&process, signal);
            if point == Point::BeforeTheWrite {
                until_it_says(&mut process, "Ctrl-C again to exit at once").await;
                scene.held.clear();
            }
            let ended = Ended::of(process).await;
            assert!(ended.expect_code(code).contains("interrupted"), "{ended:?}");
            let is_written = matches!(point, Point::BeforeTheWrite | Point::Written);
            scene.expect_signed_in_as(if is_written { "grace" } else { "ada" }).await;
        }
    }
}
