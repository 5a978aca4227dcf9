//! The test that a server can be used safely.

use redis::{Cmd, FromRedisValue, cmd, from_redis_value};
use tokio::time::Instant;

use super::Shared;
use super::failure::{Failure, describe};
use super::line::{CALL_TIMEOUT, Call, alone};
use crate::error::{Problem, StoreErrorKind};

/// The oldest version whose scripts have flags.
const OLDEST: u32 = 7;

/// Refuses a server that may lose records, or that lacks something.
pub(super) async fn check(shared: &Shared) -> Result<(), Problem> {
    let info: String = query(shared, cmd("INFO")).await.map_err(Failure::problem)?;
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let version = field("redis_version").unwrap_or("unknown");
    if version.split('.').next().and_then(|major| major.parse().ok()).is_none_or(|major: u32| major < OLDEST) {
        return misconfigured(format!("the server's version is {version}; Redis {OLDEST} or Valkey is needed"));
    }
    if field("role") != Some("master") {
        return misconfigured("the server is a replica, which can't be written to");
    }
    if let Some(policy) = field("maxmemory_policy").filter(|policy| *policy != "noeviction") {
        return misconfigured(format!(
            "the server's eviction policy is {policy}: if its memory is full, users are signed out; run \
             `CONFIG SET maxmemory-policy noeviction`"
        ));
    }
    if field("aof_enabled") == Some("0") {
        let mut question = cmd("CONFIG");
        question.arg("GET").arg("save");
        // A managed service may not show the setting.
        let save: Result<(String, String), _> = query(shared, question).await;
        if save.is_ok_and(|(_, save)| save.is_empty()) {
            let reason = "the server keeps nothing on its disk: a restart signs all users out; run";
            return misconfigured(format!("{reason} `CONFIG SET appendonly yes`"));
        }
    }
    let connected = field("connected_slaves").and_then(|count| count.parse().ok()).unwrap_or(0_usize);
    let replicas = shared.line.replicas();
    if connected < replicas {
        return misconfigured(format!("the server has {connected} replicas, but writes wait for {replicas}"));
    }
    let mut message = cmd("PUBLISH");
    message.arg(&shared.channel).arg("");
    let _: i64 = query(shared, message).await.map_err(Failure::problem)?;
    drop(shared.line.connector().listen(&shared.channel).await?);
    Ok(())
}

async fn query<T: FromRedisValue>(shared: &Shared, command: Cmd) -> Result<T, Failure> {
    let commands = |_: &_, _| alone(command.clone());
    let call = Call { commands, deadline: Instant::now() + CALL_TIMEOUT, repeats: true, waits: false };
    let answer = shared.line.call(call).await?;
    from_redis_value(answer.value()).map_err(|error| Failure::Refused(describe(&error.into())))
}

fn misconfigured(reason: impl Into<String>) -> Result<(), Problem> {
    Err(Problem::new(StoreErrorKind::Misconfigured, reason))
}
