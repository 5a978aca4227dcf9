//! Answers of servers that are starting, in a failover, or part of a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tower_auth_refresh_store::{RedisStores, StoreError, StoreErrorKind};

/// A server that answers the first reads with this error, and the later ones with "absent".
struct Scripted {
    port: u16,
    reads: Arc<AtomicUsize>,
}

impl Scripted {
    async fn start(error: &'static str, times: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let reads: Arc<AtomicUsize> = Arc::default();
        let counted = Arc::clone(&reads);
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(answer(socket, error, times, Arc::clone(&counted)));
            }
        });
        Self { port, reads }
    }

    async fn connect(&self) -> RedisStores {
        RedisStores::connect(&format!("redis://127.0.0.1:{}", self.port)).await.unwrap()
    }
}

async fn answer(socket: TcpStream, error: &str, times: usize, reads: Arc<AtomicUsize>) -> std::io::Result<()> {
    let (reader, mut writer) = socket.into_split();
    let mut reader = BufReader::new(reader);
    loop {
        let words = read_command(&mut reader).await?;
        let answer = match &*words[0].to_ascii_uppercase() {
            "TIME" => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
                format!("*2\r\n${}\r\n{now}\r\n$1\r\n0\r\n", now.len())
            }
            "GETEX" if reads.fetch_add(1, Ordering::SeqCst) < times => format!("-{error}\r\n"),
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
        assert_eq!(server.reads.load(Ordering::SeqCst), 4, "{error}");
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
    let attempts = server.reads.load(Ordering::SeqCst);
    assert!((5..=20).contains(&attempts), "{attempts}");
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
        assert_eq!(server.reads.load(Ordering::SeqCst), 1, "{error}");
    }
}
