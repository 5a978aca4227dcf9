//! The program: `gateway --help` says what it takes.

#![forbid(unsafe_code)]

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;
use std::sync::Arc;

use gateway::{Args, Demo, Gateway, InvalidSetting, LogFormat, Metrics, RefreshWatch, StartError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gateway: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<(), StartError> {
    let mut args = Args::read()?;
    let metrics = Arc::<Metrics>::default();
    write_log(args.log, &metrics)?;
    let demo = if args.demo { Some(Demo::start(&mut args).await?) } else { None };
    // Before anybody is told that the gateway listens.
    let (terminated, interrupted) = (listen_for(SignalKind::terminate()), listen_for(SignalKind::interrupt()));

    let mut gateway = Gateway::new(args.into_settings()?).metrics(metrics);
    if let Some(demo) = demo {
        gateway = gateway.demo(demo);
    }
    let gateway = gateway.listen()?;
    if let Ok(address) = gateway.address() {
        println!("listening on http://{address}");
    }
    gateway
        .serve(async {
            tokio::select! {
                () = arrival(terminated) => {}
                () = arrival(interrupted) => {}
            }
        })
        .await;
    Ok(())
}

fn write_log(format: LogFormat, metrics: &Arc<Metrics>) -> Result<(), InvalidSetting> {
    let what = std::env::var_os(EnvFilter::DEFAULT_ENV).unwrap_or_else(|| "info".into());
    let filter = EnvFilter::try_new(what.to_string_lossy());
    let filter = filter.map_err(|invalid| InvalidSetting::of(EnvFilter::DEFAULT_ENV, invalid))?;
    let log = tracing_subscriber::fmt::layer().with_writer(stderr);
    let log = match format {
        LogFormat::Text => log.with_ansi(stderr().is_terminal()).boxed(),
        LogFormat::Json => log.json().boxed(),
    };
    tracing_subscriber::registry().with(log.with_filter(filter)).with(RefreshWatch::layer(metrics)).init();
    Ok(())
}

fn listen_for(kind: SignalKind) -> Option<Signal> {
    signal(kind).inspect_err(|error| tracing::warn!(%error, "a signal can't be listened for")).ok()
}

async fn arrival(signal: Option<Signal>) {
    match signal {
        Some(mut signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}
