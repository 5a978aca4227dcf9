//! systemd: notifications, sockets that are passed on, and the limit of descriptors.

use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::directory::TestDirectory;
use crate::program::{self, Program, command};
use crate::test_gateway::Browser;

const ARGUMENTS: [&str; 3] = ["--demo", "--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0"];

fn receive(manager: &UnixDatagram) -> String {
    let mut message = [0; 100];
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let length = manager.recv(&mut message).unwrap();
    String::from_utf8(message[..length].to_vec()).unwrap()
}

/// Runs a program with sockets at the descriptors 3 and 4, as systemd does.
fn with_sockets(arguments: &[&str], names: &str, sockets: [&TcpListener; 2]) -> Command {
    let script = "exec 3<&0 4>&2 0</dev/null 2>/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$0\" \"$@\"";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_gateway")]).args(arguments);
    let [stdin, stderr] = sockets.map(|socket| Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    command.env_clear().env("LISTEN_FDNAMES", names).stdin(stdin).stderr(stderr);
    command
}

#[tokio::test]
async fn the_service_manager_is_told_of_the_start_a_reload_and_the_stop() {
    let directory = TestDirectory::new();
    std::fs::create_dir(directory.path()).unwrap();
    let path = directory.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let mut program = Program::start_command(command(&ARGUMENTS).env("NOTIFY_SOCKET", &path));
    assert_eq!(receive(&manager), "READY=1");
    assert_eq!(Browser::at(program.address).get("/readyz").await.status, 200);
    program.signal(Signal::HUP);
    let reloading = receive(&manager);
    let time = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").map(str::parse::<u64>);
    assert!(matches!(time, Some(Ok(1..))), "{reloading}");
    assert_eq!(receive(&manager), "READY=1");
    program.terminate();
    assert_eq!(receive(&manager), "STOPPING=1");
    assert!(program.exit(Duration::from_secs(60)).await.success());
}

#[cfg(target_os = "linux")]
#[test]
fn the_watchdog_of_the_service_manager_gets_signs_of_life() {
    use std::os::linux::net::SocketAddrExt;
    let name = format!("gateway-{}", std::process::id());
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
    let manager = UnixDatagram::bind_addr(&address).unwrap();
    let mut command = command(&ARGUMENTS);
    command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "100000");
    let program = Program::start_command(&mut command);
    assert_eq!(receive(&manager), "READY=1");
    for _ in 0..3 {
        assert_eq!(receive(&manager), "WATCHDOG=1");
    }
    drop(program);
    // Meant for another process.
    let _program = Program::start_command(command.env("WATCHDOG_PID", "1"));
    while receive(&manager) != "READY=1" {}
    manager.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(manager.recv(&mut [0; 100]).is_err());
}

#[tokio::test]
async fn the_listeners_may_be_passed_on_by_the_service_manager() {
    let [listener, admin] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    // Connections wait for the program.
    let waiting = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let program = Program::start_command(&mut with_sockets(&["--demo"], "admin:web", [&admin, &listener]));
    assert_eq!(program.address, listener.local_addr().unwrap());
    assert_eq!(program.admin, Some(admin.local_addr().unwrap()));
    assert_eq!(Browser::at(program.address).get("/").await.status, 200);
    assert_eq!(Browser::at(program.admin.unwrap()).get("/metrics").await.status, 200);
    drop(waiting);
}

#[test]
fn a_socket_that_cannot_be_used_stops_the_program() {
    let [one, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    // stderr is one of the sockets.
    let status = |command: &mut Command| command.stdout(Stdio::null()).status().unwrap().code();
    assert_eq!(status(&mut with_sockets(&["--demo"], "web:web", [&one, &other])), Some(2));
    assert_eq!(status(&mut with_sockets(&["--demo"], "admin:admin", [&one, &other])), Some(2));
    let mut no_socket = Command::new("sh");
    no_socket.args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\" 3</dev/null", env!("CARGO_BIN_EXE_gateway")]);
    let output = program::run_to_failure(no_socket.arg("--demo").env_clear());
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.lines().last().unwrap().starts_with("gateway: LISTEN_FDS: "), "{message}");
}

/// A socket that others reach needs a public origin, whatever --listen is.
#[test]
fn the_address_of_a_socket_that_is_passed_on_counts() {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let passed_on = |arguments: &[&str]| {
        let mut shell = Command::new("sh");
        let script = "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        shell.args(["-c", script, env!("CARGO_BIN_EXE_gateway")]).args(arguments).env_clear();
        shell.stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())));
        shell
    };
    let output = program::run_to_failure(&mut passed_on(&ARGUMENTS));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.lines().last().unwrap().starts_with("gateway: --public-origin: "), "{message}");

    let check = ["--check", "--upstream=http://127.0.0.1:1", "--auth=http://127.0.0.1:1"];
    let output = program::run_to_failure(&mut passed_on(&check));
    let findings = String::from_utf8(output.stdout).unwrap();
    assert!(findings.starts_with("FAIL --public-origin: ") && findings.lines().count() == 1, "{findings}");
}

#[cfg(target_os = "linux")]
#[test]
fn the_limit_of_descriptors_is_raised() {
    for (limits, raised) in [("ulimit -Sn 256; ulimit -Hn 3000", "3000"), ("ulimit -n 256", "256")] {
        let mut limited = Command::new("sh");
        limited.args(["-c", &format!("{limits}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_gateway")]);
        let program = Program::start_command(limited.args(ARGUMENTS).env_clear());
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", program.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().nth(3), Some(raised), "{line}");
    }
}

#[tokio::test]
async fn a_misspelt_variable_is_warned_of() {
    let mut command = command(&ARGUMENTS);
    command.env("GATEWAY_BODYLIMIT", "secret").env("GATEWAY_DRAIN_DELAY", "1ms").stderr(Stdio::piped());
    let mut program = Program::start_command(&mut command);
    let log = program.take_log();
    program.terminate();
    assert!(program.exit(Duration::from_secs(60)).await.success());
    let log = log.join();
    let warned: Vec<_> = log.lines().filter(|line| line.contains("unknown setting")).collect();
    assert_eq!(warned.len(), 1, "{log}");
    assert!(warned[0].contains("GATEWAY_BODYLIMIT") && warned[0].contains("GATEWAY_BODY_LIMIT"), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[test]
fn the_units_of_the_example_are_valid() {
    let directory = TestDirectory::new();
    std::fs::create_dir(directory.path()).unwrap();
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify");
    for name in ["gateway.service", "gateway.socket"] {
        let unit = std::fs::read_to_string(format!("{}/systemd/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap();
        // It has to exist.
        let unit = unit.replace("/usr/local/bin/gateway", env!("CARGO_BIN_EXE_gateway"));
        std::fs::write(directory.path().join(name), unit).unwrap();
        verify.arg(directory.path().join(name));
    }
    // Not every machine that runs the tests has systemd.
    let Ok(output) = verify.output() else { return println!("skipped: systemd-analyze is not installed") };
    // It warns of other units of the machine too.
    let warnings = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !warnings.contains("gateway."), "{warnings}");
}
