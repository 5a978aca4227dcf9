//! A process of the scenes of `--replicas`: an app whose tokens are in a directory that it shares with other processes.
//! It executes the commands on its standard input, and answers each with a line.

use std::env;
use std::path::Path;
use std::process::Stdio;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, stdin};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tower::{BoxError, Layer, ServiceExt, service_fn};
use tower_auth_refresh::{AuthRefreshLayer, Origin, Session};
use tower_auth_refresh_store::FileStore;

use crate::auth::AuthServer;

/// The argument that makes a process a replica.
pub(crate) const ARGUMENT: &str = "--replica";

/// A process that another one has started. It is killed when this is dropped.
pub(crate) struct Replica {
    process: Child,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Replica {
    pub(crate) fn start(directory: &Path, origin: &str) -> Result<Self, BoxError> {
        let mut process = Command::new(env::current_exe()?)
            .arg(ARGUMENT)
            .arg(directory)
            .arg(origin)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (commands, answers) = process.stdin.take().zip(process.stdout.take()).ok_or("the process has no pipes")?;
        Ok(Self { process, commands, answers: BufReader::new(answers).lines() })
    }

    /// Signs a user in.
    pub(crate) async fn sign_in(&mut self, user: &str) -> Result<String, BoxError> {
        self.send(&format!("sign-in {user}")).await?;
        self.answer().await
    }

    /// Makes a call of the API.
    pub(crate) async fn get(&mut self, path: &str) -> Result<String, BoxError> {
        self.begin(path).await?;
        self.answer().await
    }

    /// Begins a call of the API.
    pub(crate) async fn begin(&mut self, path: &str) -> Result<(), BoxError> {
        self.send(&format!("get {path}")).await
    }

    /// Waits for the outcome of what was begun.
    pub(crate) async fn answer(&mut self) -> Result<String, BoxError> {
        Ok(self.answers.next_line().await?.ok_or("the process has ended")?)
    }

    /// Kills the process: on Unix, `kill -9`.
    pub(crate) async fn kill(mut self) -> Result<(), BoxError> {
        Ok(self.process.kill().await?)
    }

    async fn send(&mut self, command: &str) -> Result<(), BoxError> {
        Ok(self.commands.write_all(format!("{command}\n").as_bytes()).await?)
    }
}

/// Executes the commands of the process that has started this one.
pub(crate) async fn serve(directory: &str, origin: &str) -> Result<(), BoxError> {
    // The complete setup of an app that keeps its user signed in: one line more than without a store.
    let auth = AuthServer::new(origin.to_owned());
    let service = auth.clone();
    let session = Session::builder(service_fn(move |request| service.clone().refresh(request)))
        .store(FileStore::open_single(directory)?)
        .build()
        .await?;
    let layer = AuthRefreshLayer::new(session.clone(), Origin::parse(origin)?);
    let client = layer.layer(Client::builder(TokioExecutor::new()).build_http());

    let mut commands = BufReader::new(stdin()).lines();
    while let Some(command) = commands.next_line().await? {
        match command.split_once(' ') {
            Some(("sign-in", user)) => {
                session.sign_in(auth.login(user).await?).await?;
                println!("signed in");
            }
            Some(("get", path)) => {
                let request = Request::get(format!("{origin}{path}")).body(Full::<Bytes>::default())?;
                println!("{}", client.clone().oneshot(request).await?.status());
            }
            _ => return Err(format!("unknown command: {command}").into()),
        }
    }
    Ok(())
}
