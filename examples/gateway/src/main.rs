//! The program. `gateway --help` lists its settings.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write, stderr, stdout};
use std::process::{ExitCode, exit};
use std::sync::Arc;

use gateway::{
    AccessLog, Args, Demo, Gateway, Inherited, InvalidSetting, LogFormat, LogWriter, Metrics, RefreshWatch, Reload,
    StartError, Supervisor, UnknownVariable, check, raise_descriptor_limit,
};
use mimalloc::MiMalloc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// The allocator of the C library takes 15 % of a request's CPU time, and a lock.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    let metrics = Arc::<Metrics>::default();
    let log = match LogWriter::start(stderr(), metrics.clone()) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("gateway: starting the thread of the log: {error}");
            return ExitCode::from(2);
        }
    };
    let ended = run(&log, metrics).await;
    log.flush();
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run(log: &LogWriter, metrics: Arc<Metrics>) -> Result<ExitCode, StartError> {
    let mut args = Args::read()?;
    init_tracing(args.log, log.clone(), &metrics)?;
    let access_log = AccessLog::new(log.clone(), args.log);
    for UnknownVariable { name, similar } in Args::unknown_variables() {
        tracing::warn!(variable = name, similar, "unknown setting in the environment");
    }
    let inherited = Inherited::from_env()?;
    inherited.set_addresses(&mut args)?;
    if args.check {
        return Ok(run_check(args).await);
    }
    raise_descriptor_limit();
    let supervisor = Arc::new(Supervisor::from_env());
    let demo = if args.demo { Some(Demo::start(&mut args).await?) } else { None };
    // Before the line on stdout: a supervisor may send a signal as soon as it has read that line.
    let mut signals = Signals::listen(supervisor.clone());

    let mut gateway = Gateway::new(args.into_settings()?).metrics(metrics).access_log(access_log).inherited(inherited);
    if let Some(demo) = demo {
        gateway = gateway.demo(demo);
    }
    let gateway = tokio::select! {
        listening = gateway.listen() => listening?,
        // The store may not answer. A runtime that is dropped would wait for its threads too.
        code = signals.next() => {
            log.flush();
            exit(code)
        }
    };
    // Stdout may be closed.
    if let Some(address) = gateway.admin_address() {
        let _ = writeln!(stdout(), "admin on http://{address}");
    }
    if let Ok(address) = gateway.address() {
        let _ = writeln!(stdout(), "listening on {}://{address}", gateway.scheme());
    }
    signals.reload = Some(gateway.reload());
    supervisor.ready();
    supervisor.start_watchdog();
    let shutdown = async {
        signals.next().await;
        supervisor.stopping();
        // A second signal skips the graceful shutdown.
        let log = log.clone();
        tokio::spawn(async move {
            let code = signals.next().await;
            log.flush();
            exit(code)
        });
    };
    gateway.serve(shutdown).await;
    Ok(ExitCode::SUCCESS)
}

/// Prints a line for each test.
async fn run_check(args: Args) -> ExitCode {
    let findings = check(args).await;
    for finding in &findings {
        let _ = match finding {
            Ok(tested) => writeln!(stdout(), "ok   {tested}"),
            Err(error) => writeln!(stdout(), "FAIL {error}"),
        };
    }
    if findings.iter().all(Result::is_ok) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn init_tracing(format: LogFormat, writer: LogWriter, metrics: &Arc<Metrics>) -> Result<(), InvalidSetting> {
    let directives = std::env::var_os(EnvFilter::DEFAULT_ENV).unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(directives.to_string_lossy());
    let filter = filter.map_err(|invalid| InvalidSetting::of(EnvFilter::DEFAULT_ENV, invalid))?;
    let log = tracing_subscriber::fmt::layer().with_writer(writer);
    let log = match format {
        LogFormat::Text => log.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).with(RefreshWatch::layer(metrics)).init();
    Ok(())
}

/// The signals that stop the program, and SIGHUP, which reads files again.
struct Signals {
    supervisor: Arc<Supervisor>,
    reload: Option<Reload>,
    hung_up: Option<Signal>,
    terminated: Option<Signal>,
    interrupted: Option<Signal>,
}

impl Signals {
    fn listen(supervisor: Arc<Supervisor>) -> Self {
        Self {
            supervisor,
            reload: None,
            hung_up: listen_for(SignalKind::hangup()),
            terminated: listen_for(SignalKind::terminate()),
            interrupted: listen_for(SignalKind::interrupt()),
        }
    }

    /// Waits for a signal and returns the exit code of a program killed by it (128 + its number).
    async fn next(&mut self) -> i32 {
        loop {
            tokio::select! {
                () = arrival(&mut self.terminated) => return 143,
                () = arrival(&mut self.interrupted) => return 130,
                // Tools that rotate logs send it to all servers.
                () = arrival(&mut self.hung_up) => {
                    if let Some(reload) = &self.reload {
                        self.supervisor.reloading();
                        reload.run();
                        self.supervisor.ready();
                    }
                }
            }
        }
    }
}

fn listen_for(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| tracing::warn!(%error, "could not register a signal handler")).ok()
}

async fn arrival(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
