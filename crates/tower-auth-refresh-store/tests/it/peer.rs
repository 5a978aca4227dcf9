//! A store in a process of its own: [`Peer`] passes each call to it, as a line of JSON over a socket.

use std::collections::HashMap;
use std::env;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tower_auth_refresh::ExposedTokens;
use tower_auth_refresh::store::{
    Claim, ClaimId, ClaimOutcome, ClearOutcome, CommitOutcome, Entry, Epoch, InsertOutcome, Presented, Record,
    StoreFuture, TokenStore, Version,
};

use crate::support::TestDirectory;
use crate::url;

const PORT: &str = "STORE_PEER_PORT";
const URL: &str = "STORE_PEER_URL";

/// A handle on a store in another process, which ends with it.
pub(crate) struct Peer {
    process: Mutex<Child>,
    calls: mpsc::UnboundedSender<String>,
    answers: Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>>,
    last: AtomicU64,
}

impl Peer {
    pub(crate) async fn start(url: &str) -> Self {
        Self::start_by(Command::new(env::current_exe().unwrap()), url).await
    }

    /// Starts the process by a command that runs this program.
    pub(crate) async fn start_by(mut command: Command, url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        command
            .args(["--exact", "conformance::a_second_process"])
            .env(PORT, listener.local_addr().unwrap().port().to_string())
            .env(URL, url)
            .stdout(Stdio::null());
        let mut process = command.spawn().unwrap();
        let mut starts = 1;
        let socket = loop {
            if let Ok(accepted) = timeout(Duration::from_millis(20), listener.accept()).await {
                break accepted.unwrap().0;
            }
            if let Some(status) = process.try_wait().unwrap() {
                // `faketime` fails if it finds the files of an earlier process with the same number.
                assert!(starts < 5, "the process ends at once: {status}");
                process = command.spawn().unwrap();
                starts += 1;
            }
        };
        let (reader, mut writer) = socket.into_split();
        let (calls, mut queue) = mpsc::unbounded_channel::<String>();
        tokio::spawn(async move {
            while let Some(call) = queue.recv().await {
                writer.write_all(format!("{call}\n").as_bytes()).await.unwrap();
            }
        });
        let answers: Arc<Mutex<HashMap<u64, oneshot::Sender<Value>>>> = Arc::default();
        let waiting = Arc::clone(&answers);
        tokio::spawn(async move {
            let mut lines = BufReader::new(reader).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let answer: Value = serde_json::from_str(&line).unwrap();
                let waiting = waiting.lock().unwrap().remove(&answer["number"].as_u64().unwrap());
                // A call that was dropped waits for no answer.
                let _ = waiting.unwrap().send(answer);
            }
        });
        Self { process: Mutex::new(process), calls, answers, last: AtomicU64::new(0) }
    }

    /// Stops the process, or has it go on.
    #[cfg(unix)]
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let process = self.process.lock().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&process), signal).unwrap();
    }

    /// Kills the process, as `kill -9` does.
    pub(crate) fn kill(&self) {
        let mut process = self.process.lock().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn call<T: 'static>(&self, mut call: Value, read: fn(&Value) -> T) -> StoreFuture<'_, T> {
        Box::pin(async move {
            let number = self.last.fetch_add(1, Ordering::Relaxed);
            call["number"] = number.into();
            let (send, answer) = oneshot::channel();
            self.answers.lock().unwrap().insert(number, send);
            self.calls.send(call.to_string()).unwrap();
            let answer = answer.await?;
            match answer["error"].as_str() {
                Some(error) => Err(error.into()),
                None => Ok(read(&answer["outcome"])),
            }
        })
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap();
        let _ = process.kill();
        let _ = process.wait();
    }
}

impl TokenStore for Peer {
    fn load(&self) -> StoreFuture<'_, Option<Record>> {
        self.call(json!({"call": "load"}), read_record)
    }

    fn insert<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, InsertOutcome> {
        self.call(json!({"call": "insert", "entry": entry_to_json(entry)}), |outcome| {
            match read_version(&outcome["inserted"]) {
                Some(version) => InsertOutcome::Inserted(version),
                None => InsertOutcome::Exists(read_record(&outcome["exists"]).unwrap()),
            }
        })
    }

    fn replace<'a>(&'a self, entry: &'a Entry) -> StoreFuture<'a, Version> {
        self.call(json!({"call": "replace", "entry": entry_to_json(entry)}), |outcome| read_version(outcome).unwrap())
    }

    fn claim<'a>(&'a self, version: &'a Version, lease: Duration) -> StoreFuture<'a, ClaimOutcome> {
        let call = json!({"call": "claim", "version": version.as_bytes(), "lease": millis(lease)});
        self.call(call, |outcome| {
            if let Some(claim) = read_claim(&outcome["claimed"]) {
                return ClaimOutcome::Claimed(claim);
            }
            match outcome["busy"].as_u64() {
                Some(left) => ClaimOutcome::Busy { retry_in: Duration::from_millis(left) },
                None => ClaimOutcome::Changed(read_record(&outcome["changed"])),
            }
        })
    }

    fn renew<'a>(&'a self, claim: &'a Claim, lease: Duration) -> StoreFuture<'a, bool> {
        let call = json!({"call": "renew", "claim": claim_to_json(claim), "lease": millis(lease)});
        self.call(call, |outcome| outcome.as_bool().unwrap())
    }

    fn release<'a>(&'a self, claim: &'a Claim, presented: Presented) -> StoreFuture<'a, ()> {
        let in_doubt = presented == Presented::InDoubt;
        self.call(json!({"call": "release", "claim": claim_to_json(claim), "in_doubt": in_doubt}), |_| ())
    }

    fn commit<'a>(&'a self, claim: &'a Claim, entry: &'a Entry) -> StoreFuture<'a, CommitOutcome> {
        let call = json!({"call": "commit", "claim": claim_to_json(claim), "entry": entry_to_json(entry)});
        self.call(call, |outcome| match read_version(&outcome["stored"]) {
            Some(version) => CommitOutcome::Stored(version),
            None => CommitOutcome::Conflict(read_record(&outcome["conflict"])),
        })
    }

    fn clear<'a>(&'a self, version: &'a Version) -> StoreFuture<'a, ClearOutcome> {
        self.call(json!({"call": "clear", "version": version.as_bytes()}), |outcome| match read_record(outcome) {
            Some(record) => ClearOutcome::Conflict(record),
            None => ClearOutcome::Cleared,
        })
    }

    fn extend<'a>(&'a self, version: &'a Version, expires_at: SystemTime) -> StoreFuture<'a, bool> {
        let call = json!({"call": "extend", "version": version.as_bytes(), "expires_at": time_to_json(expires_at)});
        self.call(call, |outcome| outcome.as_bool().unwrap())
    }

    fn is_durable(&self) -> bool {
        true
    }
}

/// In a process that a [`Peer`] has started, serves it until it ends. Does nothing in other processes.
pub(crate) fn serve() {
    let Ok(port) = env::var(PORT) else { return };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = url::open(&env::var(URL).unwrap()).await("");
        let socket = TcpStream::connect(("127.0.0.1", port.parse().unwrap())).await.unwrap();
        let (reader, writer) = socket.into_split();
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        let mut lines = BufReader::new(reader).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (store, writer) = (Arc::clone(&store), Arc::clone(&writer));
            tokio::spawn(async move {
                let call: Value = serde_json::from_str(&line).unwrap();
                let answer = match execute(&*store, &call).await {
                    Ok(outcome) => json!({"number": call["number"], "outcome": outcome}),
                    Err(error) => json!({"number": call["number"], "error": error.to_string()}),
                };
                writer.lock().await.write_all(format!("{answer}\n").as_bytes()).await.unwrap();
            });
        }
    });
}

/// Returns the URL of the file store in a directory.
pub(crate) fn file_url(directory: &TestDirectory) -> String {
    format!("file:{}", directory.path().display())
}

async fn execute(store: &dyn TokenStore, call: &Value) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
    let entry = || read_entry(&call["entry"]);
    let claim = || read_claim(&call["claim"]).unwrap();
    let version = || read_version(&call["version"]).unwrap();
    let lease = || Duration::from_millis(call["lease"].as_u64().unwrap());
    Ok(match call["call"].as_str().unwrap() {
        "load" => record_to_json(store.load().await?.as_ref()),
        "insert" => match store.insert(&entry()).await? {
            InsertOutcome::Inserted(version) => json!({"inserted": version.as_bytes()}),
            InsertOutcome::Exists(record) => json!({"exists": record_to_json(Some(&record))}),
            other => panic!("{other:?}"),
        },
        "replace" => json!(store.replace(&entry()).await?.as_bytes()),
        "claim" => match store.claim(&version(), lease()).await? {
            ClaimOutcome::Claimed(claim) => json!({"claimed": claim_to_json(&claim)}),
            ClaimOutcome::Busy { retry_in } => json!({"busy": millis(retry_in)}),
            ClaimOutcome::Changed(record) => json!({"changed": record_to_json(record.as_ref())}),
            other => panic!("{other:?}"),
        },
        "renew" => json!(store.renew(&claim(), lease()).await?),
        "release" => {
            let presented = if call["in_doubt"] == true { Presented::InDoubt } else { Presented::Unused };
            store.release(&claim(), presented).await?;
            Value::Null
        }
        "commit" => match store.commit(&claim(), &entry()).await? {
            CommitOutcome::Stored(version) => json!({"stored": version.as_bytes()}),
            CommitOutcome::Conflict(record) => json!({"conflict": record_to_json(record.as_ref())}),
            other => panic!("{other:?}"),
        },
        "clear" => match store.clear(&version()).await? {
            ClearOutcome::Cleared => Value::Null,
            ClearOutcome::Conflict(record) => record_to_json(Some(&record)),
            other => panic!("{other:?}"),
        },
        "extend" => json!(store.extend(&version(), read_time(&call["expires_at"]).unwrap()).await?),
        other => panic!("{other}"),
    })
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap()
}

fn entry_to_json(entry: &Entry) -> Value {
    let tokens = ExposedTokens::from(entry.tokens().clone());
    json!({
        "epoch": entry.epoch().to_u64(),
        "generation": entry.generation(),
        "tokens": tokens,
        "expires_at": entry.expires_at().map(time_to_json),
        "ends_at": entry.ends_at().map(time_to_json),
    })
}

fn read_entry(entry: &Value) -> Entry {
    let tokens: ExposedTokens = serde_json::from_value(entry["tokens"].clone()).unwrap();
    let (epoch, generation) = (entry["epoch"].as_u64().unwrap(), entry["generation"].as_u64().unwrap());
    let mut read = Entry::new(Epoch::from(epoch), generation, tokens.into());
    if let Some(at) = read_time(&entry["expires_at"]) {
        read = read.with_expires_at(at);
    }
    if let Some(at) = read_time(&entry["ends_at"]) {
        read = read.with_ends_at(at);
    }
    read
}

fn time_to_json(at: SystemTime) -> u64 {
    millis(at.duration_since(UNIX_EPOCH).unwrap())
}

fn read_time(time: &Value) -> Option<SystemTime> {
    Some(UNIX_EPOCH + Duration::from_millis(time.as_u64()?))
}

fn record_to_json(record: Option<&Record>) -> Value {
    record.map_or(
        Value::Null,
        |record| json!({"version": record.version().as_bytes(), "entry": entry_to_json(record.entry())}),
    )
}

fn read_record(record: &Value) -> Option<Record> {
    Some(Record::new(read_version(&record["version"])?, read_entry(&record["entry"])))
}

fn claim_to_json(claim: &Claim) -> Value {
    json!({"version": claim.version().as_bytes(), "id": claim.id().as_bytes(), "in_doubt": claim.is_in_doubt()})
}

fn read_claim(claim: &Value) -> Option<Claim> {
    let id = ClaimId::from(&*read_bytes(&claim["id"])?);
    Some(Claim::new(read_version(&claim["version"])?, id, claim["in_doubt"] == true))
}

fn read_version(version: &Value) -> Option<Version> {
    read_bytes(version).map(|bytes| Version::from(&*bytes))
}

fn read_bytes(bytes: &Value) -> Option<Vec<u8>> {
    serde_json::from_value(bytes.clone()).ok()
}
