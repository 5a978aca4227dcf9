//! A process that is killed, or gets Ctrl-C, at each point of a refresh. The next one works, and the user stays signed
//! in.

use std::fs::File;
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Child;
use tokio::time::timeout;
use tower_auth_refresh_testkit::{Fault, Gate, Rotation, Route, TestServer};

use crate::support::{
    Ended, Home, PATIENCE, arrived, home_with_expired_token, locked, send, until, until_it_has_opened, until_it_says,
};

/// A point of a refresh at which the process waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// Another process has the lock of the session's files.
    BeforeTheClaim,
    /// The server has the request and has not processed it.
    Sent,
    /// The server has rotated the refresh token, and the answer is on its way.
    Rotated,
    /// The answer has arrived, and another process has the lock of the session's files.
    BeforeTheCommit,
    /// The new tokens are stored, and the API is called with them.
    Committed,
}

const POINTS: [Point; 5] =
    [Point::BeforeTheClaim, Point::Sent, Point::Rotated, Point::BeforeTheCommit, Point::Committed];

/// A process that waits at a point.
struct Scene {
    server: TestServer,
    home: Home,
    process: Child,
    gate: Option<Gate>,
    lock: Option<File>,
}

impl Scene {
    async fn at(point: Point, rotation: Rotation) -> Self {
        println!("{point:?}");
        let server = TestServer::start().await.unwrap();
        server.configure(|settings| settings.rotation = rotation);
        let home = home_with_expired_token(&server).await;
        let lock_file = home.file(".lock").unwrap();
        let (refreshes, calls) = (server.counters().refreshes, server.counters().api);
        let lock = (point == Point::BeforeTheClaim).then(|| locked(&lock_file));
        let gate = (!matches!(point, Point::BeforeTheClaim | Point::Sent)).then(|| server.hold_refreshes());
        match point {
            Point::Sent => server.inject(Route::Refresh, Fault::hang().times(1)),
            // The API refuses the token, and the call is repeated with the new one.
            Point::Committed => server.expire_access_tokens(),
            _ => {}
        }
        let command: &[_] = if point == Point::Committed { &["call", "GET", "/api/notes"] } else { &["token"] };
        let mut scene = Self { process: home.start(command), server, home, gate, lock };
        let counters = || scene.server.counters();
        match point {
            Point::BeforeTheClaim => until_it_has_opened(&scene.process, &lock_file).await,
            Point::Sent => until("the request arrives", || counters().refreshes > refreshes).await,
            Point::Rotated | Point::Committed | Point::BeforeTheCommit => {
                arrived(scene.gate.as_ref().unwrap()).await;
            }
        }
        match point {
            Point::Committed => {
                scene.server.inject(Route::Api, Fault::hang().times(1));
                scene.gate = None;
                until("the API is called with the new token", || counters().api > calls + 1).await;
            }
            Point::BeforeTheCommit => {
                scene.lock = Some(locked(&lock_file));
                scene.gate = None;
                until_it_has_opened(&scene.process, &lock_file).await;
                // The server has sent the new token, and can't know that it is lost.
                scene.server.allow_reuse_once("ada");
            }
            _ => {}
        }
        scene
    }

    /// Waits until the process has taken notice of Ctrl-C, and says that it goes on.
    async fn until_it_saves(&mut self) {
        until_it_says(&mut self.process, "Ctrl-C again to exit at once").await;
    }

    fn signal(&self, signal: Signal) {
        send(&self.process, signal);
    }

    /// Lets the refresh go on.
    fn go_on(&mut self) {
        self.gate = None;
        self.lock = None;
    }

    /// The next command works, and the session goes on.
    async fn expect_signed_in(&self) {
        self.server.clear_faults();
        assert!(!self.home.run(&["token"]).await.expect_success().is_empty());
        let answer = self.home.run(&["call", "GET", "/api/notes"]).await;
        assert!(answer.expect_success().contains("ada"), "{answer:?}");
        assert_eq!(self.server.violations(), []);
    }
}

/// The server lets a used refresh token be presented again for a while, as those do that rotate: the app can't know what
/// it has lost.
const GRACE: Rotation = Rotation::Grace(Duration::from_secs(60));

#[tokio::test]
async fn a_process_that_is_killed_at_any_point_costs_no_other_its_session() {
    for point in POINTS {
        let mut scene = Scene::at(point, GRACE).await;
        scene.process.kill().await.unwrap();
        scene.go_on();
        scene.expect_signed_in().await;
    }
}

#[tokio::test]
async fn ctrl_c_at_any_point_saves_the_session_first() {
    // A server that takes a second use of a refresh token for a theft.
    for point in [Point::BeforeTheClaim, Point::Rotated, Point::BeforeTheCommit, Point::Committed] {
        let mut scene = Scene::at(point, Rotation::Strict).await;
        scene.signal(Signal::INT);
        if point != Point::Committed {
            scene.until_it_saves().await;
        }
        scene.go_on();
        let Scene { server, home, process, .. } = scene;
        let ended = Ended::of(process).await;
        assert!(ended.expect_code(130).contains("interrupted"), "{ended:?}");
        assert_eq!(ended.stdout, "");
        let refreshes = server.counters().refreshes;
        home.run(&["token"]).await.expect_success();
        // Before the claim nothing is used up: if the lock was not free in time, the next command refreshes.
        let more = u64::from(point == Point::BeforeTheClaim);
        assert!(server.counters().refreshes <= refreshes + more, "{point:?}: refreshed again");
        assert_eq!(server.violations(), []);
    }
}

#[tokio::test]
async fn a_second_ctrl_c_exits_at_once_and_the_next_command_works() {
    for point in [Point::BeforeTheClaim, Point::Sent, Point::Rotated, Point::BeforeTheCommit] {
        let mut scene = Scene::at(point, GRACE).await;
        scene.signal(Signal::INT);
        scene.until_it_saves().await;
        scene.signal(Signal::INT);
        let status = timeout(PATIENCE, scene.process.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(130));
        scene.go_on();
        scene.expect_signed_in().await;
    }
}

#[tokio::test]
async fn closing_the_terminal_saves_the_session_first() {
    for (signal, code) in [(Signal::HUP, 129), (Signal::TERM, 143)] {
        let mut scene = Scene::at(Point::Rotated, Rotation::Strict).await;
        scene.signal(signal);
        scene.until_it_saves().await;
        scene.go_on();
        let Scene { server, home, process, .. } = scene;
        Ended::of(process).await.expect_code(code);
        home.run(&["token"]).await.expect_success();
        assert_eq!(server.violations(), []);
    }
}

#[tokio::test]
async fn signals_that_come_together_or_of_a_closed_terminal_save_the_session_first() {
    for signals in [[Signal::HUP, Signal::HUP], [Signal::HUP, Signal::TERM], [Signal::TERM, Signal::HUP]] {
        let mut scene = Scene::at(Point::Rotated, Rotation::Strict).await;
        for signal in signals {
            scene.signal(signal);
            std::thread::sleep(Duration::from_micros(100));
        }
        scene.until_it_saves().await;
        // However late it comes.
        scene.signal(Signal::HUP);
        scene.go_on();
        let Scene { server, home, process, .. } = scene;
        let ended = Ended::of(process).await;
        assert!([Some(129), Some(143)].contains(&ended.status.code()), "{ended:?}");
        home.run(&["token"]).await.expect_success();
        assert_eq!(server.violations(), []);
    }
}
