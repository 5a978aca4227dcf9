//! A `logout` that is killed, or gets a signal, at each of its points. The user is signed in as before, or is asked to
//! sign in.

use std::any::Any;

use rustix::process::Signal;
use tokio::process::Child;
use tower_auth_refresh_testkit::{Fault, Route, TestServer};

use crate::support::{
    Ended, Home, full_stdout, home_with_expired_token, locked, send, until, until_it_has_opened, until_it_says,
};

/// A point of a sign-out at which the process waits. The record is removed while the tokens are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Point {
    /// The server has the revocation and has not processed it; another process has the lock of the session's files.
    Begun,
    /// The server has revoked the tokens; another process has the lock of the session's files.
    Revoked,
    /// The record is removed; the server has the revocation and has not processed it.
    Removed,
    /// The record is removed, and the server has revoked the tokens: its answer is on its way.
    RevokedAndRemoved,
    /// All is done, and the reader of the output doesn't read.
    Done,
}

const POINTS: [Point; 5] = [Point::Begun, Point::Revoked, Point::Removed, Point::RevokedAndRemoved, Point::Done];

impl Point {
    fn is_removed(self) -> bool {
        matches!(self, Self::Removed | Self::RevokedAndRemoved | Self::Done)
    }
}

/// A sign-out of ada, whose access token has expired.
struct Scene {
    server: TestServer,
    home: Home,
    /// The means by which the process is held up.
    held: Vec<Box<dyn Any>>,
}

impl Scene {
    /// Returns the process that waits at this point.
    async fn at(point: Point) -> (Child, Self) {
        println!("{point:?}");
        let server = TestServer::start().await.unwrap();
        let home = home_with_expired_token(&server).await;
        let lock = home.file(".lock").unwrap();
        let mut held: Vec<Box<dyn Any>> = Vec::new();
        if !point.is_removed() {
            held.push(Box::new(locked(&lock)));
        }
        let revocation = match point {
            Point::Begun | Point::Removed => Some(Fault::hang()),
            Point::Revoked | Point::RevokedAndRemoved => Some(Fault::hang().after_processing()),
            Point::Done => None,
        };
        let faults = u64::from(revocation.is_some());
        if let Some(fault) = revocation {
            server.inject(Route::SignIn, fault.times(1));
        }
        let mut logout = home.app(&["logout"]);
        if point == Point::Done {
            let (stdout, reader) = full_stdout();
            logout.stdout(stdout);
            held.push(Box::new(reader));
        }
        let process = logout.spawn().unwrap();
        until("the revocation arrives", || server.counters().faults == faults).await;
        if point.is_removed() {
            until("the record is removed", || home.file(".record").is_none()).await;
        } else {
            until_it_has_opened(&process, &lock).await;
        }
        if point == Point::Done {
            until("the revocation is answered", || revocations(&server) == [Some(200)]).await;
        }
        (process, Self { server, home, held })
    }

    /// Lets the process go on.
    fn go_on(&mut self) {
        self.held.clear();
        self.server.clear_faults();
    }

    async fn expect_signed_in(&self) {
        let answer = self.home.run(&["call", "GET", "/api/notes"]).await;
        assert!(answer.expect_success().contains("ada"), "{answer:?}");
    }

    async fn expect_signed_out(&self) {
        let answer = self.home.run(&["call", "GET", "/api/notes"]).await;
        assert!(answer.expect_code(3).contains("sign in"), "{answer:?}");
    }

    /// No refresh token was used twice, and nothing is in the way of another sign-out and sign-in.
    async fn expect_nothing_in_the_way(&self) {
        self.home.run(&["logout"]).await.expect_success();
        assert!(self.home.run(&["token"]).await.expect_code(3).contains("sign in"));
        self.home.import(&self.server, &[]).await.expect_success();
        self.expect_signed_in().await;
        assert_eq!(self.server.violations(), []);
    }
}

/// The statuses of the answers to revocations.
fn revocations(server: &TestServer) -> Vec<Option<u16>> {
    let log = server.log().into_iter();
    log.filter(|entry| entry.path == "/oauth/revoke").map(|entry| entry.status).collect()
}

#[tokio::test]
async fn a_logout_that_is_killed_at_any_point_leaves_the_user_signed_in_or_asks_to_sign_in() {
    for point in POINTS {
        let (mut process, mut scene) = Scene::at(point).await;
        process.kill().await.unwrap();
        scene.go_on();
        if point == Point::Begun {
            scene.expect_signed_in().await;
        } else {
            scene.expect_signed_out().await;
        }
        scene.expect_nothing_in_the_way().await;
    }
}

#[tokio::test]
async fn a_signal_at_any_point_of_a_logout_completes_it_unless_a_second_one_comes() {
    for point in POINTS {
        for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
            let (mut process, mut scene) = Scene::at(point).await;
            send(&process, signal);
            if point != Point::Done {
                until_it_says(&mut process, "Ctrl-C again to exit at once").await;
                scene.go_on();
                if !point.is_removed() {
                    until("the record is removed", || scene.home.file(".record").is_none()).await;
                }
                // The answer to the revocation doesn't come.
                send(&process, signal);
            }
            let ended = Ended::of(process).await;
            assert!(ended.expect_code(code).contains("interrupted"), "{ended:?}");
            scene.expect_signed_out().await;
            scene.expect_nothing_in_the_way().await;
        }
    }
}
