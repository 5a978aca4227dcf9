//! The key in GNOME Keyring, on a bus of its own: unlocked, locked, absent, and without an answer.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tower_auth_refresh::store::TokenStore;
use tower_auth_refresh_store::{FileStore, KeychainKey, Keys, StoreError, StoreErrorKind};

use crate::support::{TestDirectory, entry};

const SCENE: &str = "KEYCHAIN_SCENE";
const HOME: &str = "KEYCHAIN_HOME";
const NAME: &str = "org.example.tests";

/// Without the files that have the bus start services.
const BUS: &str = r#"<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>"#;

/// Runs a scene in a process with a bus and a home of its own.
fn play(scene: &str) {
    let missing = ["dbus-run-session", "gnome-keyring-daemon"].into_iter().find(|program| !is_installed(program));
    if let Some(missing) = missing {
        assert!(env::var("CI").is_err(), "{missing} isn't installed");
        return eprintln!("skipped: {missing} isn't installed");
    }
    let home = TestDirectory::new();
    fs::create_dir(home.path()).unwrap();
    fs::write(home.path().join("bus.conf"), BUS).unwrap();
    let mut session = Command::new("dbus-run-session");
    session.arg(format!("--config-file={}", home.path().join("bus.conf").display())).arg("--");
    session.arg(env::current_exe().unwrap()).args(["--exact", "keychain::in_a_session", "--nocapture"]);
    for directory in ["HOME", "XDG_RUNTIME_DIR", "XDG_DATA_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", HOME] {
        session.env(directory, home.path());
    }
    let status = session.env(SCENE, scene).env_remove("DISPLAY").env_remove("GNOME_KEYRING_CONTROL").status().unwrap();
    assert!(status.success(), "{scene}: {status}");
}

fn is_installed(program: &str) -> bool {
    env::split_paths(&env::var_os("PATH").unwrap()).any(|directory| directory.join(program).is_file())
}

/// GNOME Keyring, until it is dropped.
struct Keyring(Child);

impl Keyring {
    fn unlocked() -> Self {
        Self::start(&["--unlock"])
    }

    /// With the keyring that was made before, and no password.
    fn locked() -> Self {
        Self::start(&[])
    }

    fn start(arguments: &[&str]) -> Self {
        let mut daemon = Command::new("gnome-keyring-daemon");
        daemon.args(["--foreground", "--components=secrets"]).args(arguments);
        let mut daemon = daemon.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // The end of the input is the end of the password.
        daemon.stdin.take().unwrap().write_all(b"password").unwrap();
        let keyring = Self(daemon);
        let bus = |arguments: &[&str]| {
            let mut send = Command::new("dbus-send");
            send.args(["--session", "--print-reply", "--dest=org.freedesktop.DBus", "/org/freedesktop/DBus"]);
            String::from_utf8(send.args(arguments).output().unwrap().stdout).unwrap()
        };
        let begun = Instant::now();
        while !bus(&["org.freedesktop.DBus.NameHasOwner", "string:org.freedesktop.secrets"]).contains("true") {
            assert!(begun.elapsed() < Duration::from_secs(10), "GNOME Keyring doesn't start");
            std::thread::sleep(Duration::from_millis(20));
        }
        keyring
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Keyring {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn in_a_session() {
    let Ok(scene) = env::var(SCENE) else { return };
    let home = PathBuf::from(env::var_os(HOME).unwrap());
    match &*scene {
        "unlocked" => unlocked(&home.join("tokens")).await,
        "locked" => locked(&home.join("tokens")),
        "absent" => absent(&home.join("tokens")),
        "silent" => silent(&home.join("tokens")),
        "lost" => lost(&home.join("tokens")),
        "first starts" => first_starts(&home.join("tokens")),
        "first start" => println!("{:?}", open(&home.join("tokens")).unwrap()),
        other => panic!("{other}"),
    }
}

fn open(directory: &Path) -> Result<Keys, StoreError> {
    KeychainKey::new(NAME).open(directory)
}

fn refusal(directory: &Path) -> StoreErrorKind {
    let error = open(directory).unwrap_err();
    assert!(error.resource().contains(NAME), "{error}");
    eprintln!("{error} ({:?})", std::error::Error::source(&error));
    error.kind()
}

fn store(directory: &Path) -> std::sync::Arc<dyn TokenStore> {
    FileStore::builder(directory).keys(open(directory).unwrap()).open().unwrap().store("ada")
}

#[test]
fn a_key_is_made_once_and_found_again() {
    play("unlocked");
}

async fn unlocked(directory: &Path) {
    let keyring = Keyring::unlocked();
    store(directory).replace(&entry(1)).await.unwrap();
    // The next session of the user.
    drop(keyring);
    let _keyring = Keyring::unlocked();
    let found = store(directory).load().await.unwrap().unwrap();
    assert_eq!(found.entry(), &entry(1));
    let files = fs::read_dir(directory).unwrap().map(|file| fs::read(file.unwrap().path()).unwrap());
    assert!(files.into_iter().all(|bytes| !bytes.windows(7).any(|text| text == b"refresh")), "a token is in clear");
}

#[test]
fn a_locked_keychain_is_an_error() {
    play("locked");
}

fn locked(directory: &Path) {
    let keyring = Keyring::unlocked();
    open(directory).unwrap();
    drop(keyring);
    let _keyring = Keyring::locked();
    assert_eq!(refusal(directory), StoreErrorKind::Locked);
    // Nor is a key made.
    let first = KeychainKey::new("another").open(directory.with_file_name("other"));
    assert_eq!(first.unwrap_err().kind(), StoreErrorKind::Locked);
}

#[test]
fn an_absent_keychain_is_an_error_and_nothing_is_stored() {
    play("absent");
}

fn absent(directory: &Path) {
    assert_eq!(refusal(directory), StoreErrorKind::Unavailable);
    assert_eq!(fs::read_dir(directory).unwrap().filter(|it| !is_lock(it.as_ref().unwrap())).count(), 0);
}

fn is_lock(file: &fs::DirEntry) -> bool {
    file.path().extension().is_some_and(|extension| extension == "lock")
}

#[test]
fn a_keychain_that_never_answers_is_an_error_within_the_time() {
    play("silent");
}

fn silent(directory: &Path) {
    let keyring = Keyring::unlocked();
    open(directory).unwrap();
    keyring.signal(Signal::STOP);
    let begun = Instant::now();
    let key = KeychainKey::new(NAME).timeout(Duration::from_millis(300));
    for _ in 0..3 {
        // The later calls wait for the first one.
        assert_eq!(key.open(directory).unwrap_err().kind(), StoreErrorKind::Unanswered);
    }
    assert!((900..4_000).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    keyring.signal(Signal::CONT);
    open(directory).unwrap();
    keyring.signal(Signal::STOP);
    let begun = Instant::now();
    assert_eq!(refusal(directory), StoreErrorKind::Unanswered);
    assert!((5..6).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
}

#[test]
fn a_key_that_the_keychain_has_lost_or_replaced_is_not_made_again() {
    play("lost");
}

fn lost(directory: &Path) {
    let keyring = Keyring::unlocked();
    open(directory).unwrap();
    let other = directory.with_file_name("other");
    assert!(other.parent().is_some_and(|home| home.join("keyrings").is_dir()));
    drop(keyring);
    fs::remove_dir_all(directory.with_file_name("keyrings")).unwrap();
    let _keyring = Keyring::unlocked();
    assert_eq!(refusal(directory), StoreErrorKind::UnknownKey);
    // Another directory's first start has made another key.
    open(&other).unwrap();
    assert_eq!(refusal(directory), StoreErrorKind::UnknownKey);
}

#[test]
fn processes_that_start_for_the_first_time_together_make_one_key() {
    play("first starts");
}

fn first_starts(_: &Path) {
    let _keyring = Keyring::unlocked();
    let start = |_| {
        let mut process = Command::new(env::current_exe().unwrap());
        process.args(["--exact", "keychain::in_a_session", "--nocapture"]).env(SCENE, "first start");
        process.stdout(Stdio::piped()).spawn().unwrap()
    };
    let processes: Vec<_> = (0..10).map(start).collect();
    let mut keys: Vec<_> = processes
        .into_iter()
        .map(|process| {
            let output = process.wait_with_output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let output = String::from_utf8(output.stdout).unwrap();
            output.lines().find(|line| line.contains("keychain-")).unwrap().to_owned()
        })
        .collect();
    keys.dedup();
    assert_eq!(keys.len(), 1, "{keys:?}");
}
