//! Answers of servers that are starting, in a failover, or part of a cluster, and what they are asked.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tower_auth_refresh::store::Version;
use tower_auth_refresh_store::{RedisStores, StoreError, StoreErrorKind};

use crate::support::{LEASE, entry};

/// A server that answers the first reads with this error, and the later ones with "absent". It runs no script.
struct Scripted {
    port: u16,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    /// The answer to `TIME`, instead of the time since 1970, and to `INFO`.
    time: Option<Duration>,
    info: &'static str,
    /// The first scripts that refuse to run, since they are late. If this is set, the later ones succeed.
    late: Option<usize>,
    reads: AtomicUsize,
    /// The time at which each script has arrived, and its last argument, in milliseconds.
    scripts: Mutex<Vec<(u128, u128)>>,
}

/// The time until the server says what time it is: as late as can be.
const SLOW_CLOCK: Duration = Duration::from_millis(300);

impl Scripted {
    async fn start(error: &'static str, times: usize) -> Self {
        Self::start_as(Seen::default(), error, times).await
    }

    async fn start_as(seen: Seen, error: &'static str, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(seen);
        let noted = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, error, times, Arc::clone(&noted)));
            }
        });
        Self { port, seen }
    }

    async fn connect(&self) -> RedisStores {
        RedisStores::connect(&format!("redis://127.0.0.1:{}", self.port)).await.unwrap()
    }

    fn reads(&self) -> usize {
        self.seen.reads.load(Ordering::SeqCst)
    }
}

/// The time since 1970.
fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap()
}

async fn answer(socket: TcpStream, error: &str, times: usize, seen: Arc<Seen>) -> std::io::Result<()> {
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let words = read_command(&mut reader).await?;
        let answer = match &*words[0].to_ascii_uppercase() {
            "TIME" => {
                sleep(SLOW_CLOCK).await;
                let now = seen.time.unwrap_or_else(now);
                format!("*2\r\n$10\r\n{:010}\r\n$6\r\n{:06}\r\n", now.as_secs(), now.subsec_micros())
            }
            "EVAL" | "EVALSHA" => {
                let deadline = words.last().unwrap().parse().unwrap();
                let mut scripts = seen.scripts.lock().unwrap();
                scripts.push((now().as_millis(), deadline));
                match seen.late {
                    Some(late) if scripts.len() <= late => "*1\r\n$4\r\nlate\r\n".to_owned(),
                    Some(_) => "*1\r\n$4\r\ndone\r\n".to_owned(),
                    None => format!("-{error}\r\n"),
                }
            }
            "INFO" => format!("${}\r\n{}\r\n", seen.info.len(), seen.info),
            "GETEX" if seen.reads.fetch_add(1, Ordering::SeqCst) < times => format!("-{error}\r\n"),
            "GETEX" => "$-1\r\n".to_owned(),
            _ => "+OK\r\n".to_owned(),
        };
        writer.write_all(answer.as_bytes()).await?;
    }
}

/// Reads an array of strings.
async fn read_command(reader: &mut (impl AsyncBufReadExt + Unpin)) -> std::io::Result<Vec<String>> {
    let mut line = String::new();
    let mut number = async |reader: &mut _| {
        line.clear();
        AsyncBufReadExt::read_line(reader, &mut line).await?;
        line.trim_start_matches(['*', '$']).trim_end().parse::<usize>().map_err(std::io::Error::other)
    };
    let mut words = Vec::new();
    for _ in 0..number(reader).await? {
        let mut word = vec![0; number(reader).await? + 2];
        reader.read_exact(&mut word).await?;
        words.push(String::from_utf8_lossy(&word[..word.len() - 2]).into_owned());
    }
    Ok(words)
}

#[tokio::test]
async fn a_server_that_is_not_ready_is_asked_again_on_a_new_connection() {
    for error in [
        "LOADING Redis is loading the dataset in memory",
        "READONLY You can't write against a read only replica.",
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        "TRYAGAIN Multiple keys request during rehashing of slot",
        "CLUSTERDOWN The cluster is down",
    ] {
        let server = Scripted::start(error, 3).await;
        assert_eq!(server.connect().await.store("ada").load().await.unwrap(), None, "{error}");
        assert_eq!(server.reads(), 4, "{error}");
    }
}

#[tokio::test]
async fn a_server_that_stays_unready_fails_a_call_within_its_time_and_the_reason_is_given() {
    let server = Scripted::start("LOADING Redis is loading the dataset in memory", usize::MAX).await;
    let begun = Instant::now();
    let error = server.connect().await.store("ada").load().await.unwrap_err().downcast::<StoreError>().unwrap();
    assert!(begun.elapsed() < Duration::from_millis(4500));
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(error.to_string().contains("LOADING"), "{error}");
    // With pauses of up to 1 s.
    let attempts = server.reads();
    assert!((5..=20).contains(&attempts), "{attempts}");
}

#[tokio::test]
async fn a_write_that_waits_for_replicas_is_sent_again_after_pauses_while_the_server_is_not_ready() {
    let server = Scripted::start("LOADING Redis is loading the dataset in memory", usize::MAX).await;
    let url = format!("redis://127.0.0.1:{}", server.port);
    let store = RedisStores::builder(&url).wait(1).connect().await.unwrap().store("ada");
    let begun = Instant::now();
    let error = store.claim(&Version::from(1_u128), LEASE).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_millis(4500));
    assert!(error.to_string().contains("LOADING"), "{error}");
    // With pauses of up to 1 s.
    let attempts = server.seen.scripts.lock().unwrap().len();
    assert!((4..=10).contains(&attempts), "{attempts}");
}

#[tokio::test]
async fn deadlines_are_by_the_time_of_the_server_to_the_millisecond() {
    let time = Duration::from_millis(1_893_456_000_900);
    let seen = Seen { time: Some(time), ..Seen::default() };
    let server = Scripted::start_as(seen, "NOPERM this user has no permissions", usize::MAX).await;
    let store = server.connect().await.store("ada");
    let begun = Instant::now();
    store.replace(&entry(1)).await.unwrap_err();
    let [(_, deadline)] = server.seen.scripts.lock().unwrap()[..] else { panic!("it is sent once") };
    let earliest = time.as_millis() + 1500;
    assert!((earliest..=earliest + begun.elapsed().as_millis() + 1000).contains(&deadline), "{deadline}");
}

#[tokio::test]
async fn a_script_that_is_late_since_the_servers_clock_was_set_is_sent_again_by_its_new_time() {
    let server = Scripted::start_as(Seen { late: Some(2), ..Seen::default() }, "", usize::MAX).await;
    server.connect().await.store("ada").replace(&entry(1)).await.unwrap();
    assert_eq!(server.seen.scripts.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    for (info, is_refused) in [
        ("redis_version:6.2.14\r\nrole:master\r\n", true),
        ("redis_version:7.0.0\r\nrole:master\r\n", false),
        ("redis_version:10.1.0\r\nrole:master\r\n", false),
        ("role:master\r\n", true),
    ] {
        let server = Scripted::start_as(Seen { info, ..Seen::default() }, "NOPERM", usize::MAX).await;
        // The next command fails.
        let error = server.connect().await.check().await.unwrap_err();
        assert_eq!(error.to_string().contains("Redis 7 or Valkey is needed"), is_refused, "{error}");
    }
}

#[tokio::test]
async fn a_refusal_that_will_not_pass_is_an_error_at_once() {
    for (error, kind) in [
        ("MOVED 3999 127.0.0.1:6381", StoreErrorKind::Misconfigured),
        ("NOPERM User gateway has no permissions to run the 'getex' command", StoreErrorKind::Misconfigured),
        ("NOAUTH Authentication required.", StoreErrorKind::Misconfigured),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", StoreErrorKind::Corrupt),
        ("MISCONF Redis is configured to save RDB snapshots, but ...", StoreErrorKind::Unavailable),
        ("NOREPLICAS Not enough good replicas to write.", StoreErrorKind::Unavailable),
        ("BUSY Redis is busy running a script.", StoreErrorKind::Unavailable),
    ] {
        let server = Scripted::start(error, usize::MAX).await;
        let failed = server.connect().await.store("ada").load().await.unwrap_err().downcast::<StoreError>().unwrap();
        assert_eq!(failed.kind(), kind, "{failed}");
        assert_eq!(server.reads(), 1, "{error}");
    }
}

#[tokio::test]
async fn a_script_that_begins_something_is_not_run_after_its_attempt_or_its_call_has_ended() {
    let server = Scripted::start("LOADING Redis is loading the dataset in memory", usize::MAX).await;
    for is_claim in [true, false] {
        let store = server.connect().await.store("ada");
        let call_ends = (now() + Duration::from_secs(4)).as_millis();
        let outcome = if is_claim {
            store.claim(&Version::from(1_u128), LEASE).await.map(drop)
        } else {
            store.replace(&entry(1)).await.map(drop)
        };
        outcome.unwrap_err();
        let scripts = std::mem::take(&mut *server.seen.scripts.lock().unwrap());
        assert!(scripts.last().unwrap().0 + 1500 > call_ends, "the last attempts are cut short: {scripts:?}");
        // The call has begun before its first attempt.
        let call_ends = scripts[0].0 + 4000;
        for (at, deadline) in scripts {
            let attempt_ends = at + 1500;
            assert!(deadline <= attempt_ends, "claim: {is_claim}, {} ms late", deadline - attempt_ends);
            assert!(deadline <= call_ends, "claim: {is_claim}, {} ms late", deadline - call_ends);
        }
    }
}
