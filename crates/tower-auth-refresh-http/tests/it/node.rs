//! The certified OpenID provider, in a process of node.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// Starts a script of `tests/interop`, and returns its process and its port. It ends when its standard input is closed.
pub(crate) fn start(script: &str) -> Result<(Child, u16), String> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    if !home.join("node_modules").exists() {
        return Err("the provider is not installed: run `npm ci` in tests/interop".to_owned());
    }
    let mut process = Command::new("node")
        .arg(script)
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| format!("node can't be started: {error}"))?;
    let mut line = String::new();
    let output = process.stdout.take().expect("it is piped");
    BufReader::new(output).read_line(&mut line).map_err(|error| format!("the provider is silent: {error}"))?;
    let ready: Value = serde_json::from_str(&line).map_err(|_| "the provider failed to start".to_owned())?;
    let port = ready["port"].as_u64().and_then(|port| port.try_into().ok()).ok_or("the provider has no port")?;
    Ok((process, port))
}
