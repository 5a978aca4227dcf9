//! Users whose browsers make calls, each on a connection of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::balancer::Balancer;
use crate::test_gateway::Browser;

/// The pause of a user between two calls.
const PAUSE: Duration = Duration::from_millis(200);

/// The number of users that sign in at the same time.
const SIGN_INS: usize = 16;

/// The session cookies of signed-in users.
pub(crate) struct Users(Vec<Arc<str>>);

/// Users that make calls until they are stopped.
pub(crate) struct Load {
    calls: JoinSet<Report>,
    stopping: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Calls that were answered with 200.
    pub(crate) answered: u64,
    /// Calls without an answer, whose gateway was killed.
    pub(crate) cut_off: u64,
    /// Calls that should not have failed.
    pub(crate) failures: Vec<String>,
}

impl Users {
    pub(crate) async fn sign_in(gateway: SocketAddr, users: usize) -> Self {
        let mut sign_ins = JoinSet::new();
        let mut cookies = Vec::new();
        for user in 0..users {
            if sign_ins.len() == SIGN_INS {
                cookies.push(sign_ins.join_next().await.unwrap().unwrap());
            }
            sign_ins.spawn(async move {
                let mut browser = Browser::at(gateway);
                assert_eq!(browser.login(&format!("user-{user}"), "x").await.status, 204);
                browser.cookie.unwrap().into()
            });
        }
        cookies.extend(sign_ins.join_all().await);
        Self(cookies)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn start(&self, balancer: &Balancer) -> Load {
        let stopping = Arc::<AtomicBool>::default();
        let mut calls = JoinSet::new();
        for cookie in &self.0 {
            let (cookie, balancer, stopping) = (Arc::clone(cookie), balancer.clone(), Arc::clone(&stopping));
            calls.spawn(async move {
                let mut report = Report::default();
                while !stopping.load(Ordering::Relaxed) {
                    report.call(&balancer, &cookie).await;
                    sleep(PAUSE).await;
                }
                report
            });
        }
        Load { calls, stopping }
    }

    /// Asserts that the sessions of all users are still accepted.
    pub(crate) async fn assert_signed_in(&self, gateway: SocketAddr) {
        for cookie in &self.0 {
            let mut browser = Browser::at(gateway);
            browser.cookie = Some(cookie.to_string());
            let answer = browser.get("/api/me").await;
            assert_eq!(answer.status, 200, "{answer:?}");
        }
    }
}

impl Load {
    pub(crate) async fn stop(self) -> Report {
        self.stopping.store(true, Ordering::Relaxed);
        let reports = self.calls.join_all().await;
        reports.into_iter().fold(Report::default(), |mut sum, report| {
            sum.answered += report.answered;
            sum.cut_off += report.cut_off;
            sum.failures.extend(report.failures);
            sum
        })
    }
}

impl Report {
    async fn call(&mut self, balancer: &Balancer, cookie: &str) {
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        let client = stream.local_addr().unwrap();
        match call(&mut stream, cookie).await {
            Ok(answer) if is_complete(&answer, 200) => self.answered += 1,
            Ok(answer) if balancer.was_killed(client) && !is_complete(&answer, 0) => self.cut_off += 1,
            Err(_) if balancer.was_killed(client) => self.cut_off += 1,
            Ok(answer) => self.failures.push(answer),
            Err(error) => self.failures.push(error.to_string()),
        }
    }
}

async fn call(stream: &mut TcpStream, cookie: &str) -> io::Result<String> {
    let request = format!("GET /api/me HTTP/1.1\r\nhost: 127.0.0.1\r\ncookie: {cookie}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Returns `true` if this is a whole response, with this status unless it is 0.
fn is_complete(answer: &str, status: u16) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    (status == 0 || head.starts_with(&format!("HTTP/1.1 {status} "))) && length == Some(body.len())
}
