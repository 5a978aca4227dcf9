//! The value of a session in Redis, and the scripts that change it.
//!
//! | bytes | content |
//! | ---: | --- |
//! | 4 | `tars` |
//! | 1 | the format: 1 |
//! | 1 | the claim: `0` none, `1` held, `2` held in doubt, `3` released in doubt |
//! | 16 | the claim's identifier |
//! | 13 | the end of the claim's lease by the server's clock, in milliseconds since 1970, in decimal digits |
//! | 15 | the end of the record, by the clocks of the clients, likewise; 0 if there is none |
//! | … | the [record](crate::record), whose version the scripts compare |
//!
//! The record is protected by its checksum or its encryption, and what comes before it isn't: a process that can write to
//! the server could as well put an older value of the session there, or delete it.
//!
//! The first five bytes keep their meaning in later formats; a script changes no value that has another format.
//!
//! Each script reads the value, decides, and changes it once, so that a script that fails has changed nothing. A script
//! that begins something is refused by a server whose memory is full; a script that ends it is not (`allow-oom`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::{Cmd, Value, cmd};
use tower_auth_refresh::store::{Entry, Record};

use super::line::Named;
use crate::error::{Problem, StoreErrorKind};
use crate::record::{Codec, millis, time};
use crate::wiped::Wiped;

const MAGIC: &[u8; 4] = b"tars";
const FORMAT: u8 = 1;
/// The digits of the end of a lease.
const LEASE: usize = 13;
/// The digits of the end of a record.
const END: usize = 15;
/// The length of what comes before the record.
const HEAD: usize = 4 + 1 + 1 + 16 + LEASE + END;
/// The longest lease, in milliseconds: its end has 13 digits for the next hundred years.
const LONGEST_LEASE: u64 = 4_999_999_999_999;

/// A script, by its source and by the SHA-1 hash that the server knows it by.
pub(super) struct Script {
    source: String,
    hash: String,
}

/// The scripts, one for each operation that changes a record.
pub(super) struct Scripts {
    pub(super) insert: Script,
    pub(super) replace: Script,
    pub(super) claim: Script,
    pub(super) renew: Script,
    pub(super) release: Script,
    pub(super) commit: Script,
    pub(super) clear: Script,
    pub(super) extend: Script,
}

/// Refused if the server's memory is full.
const BEGINS: &str = "#!lua";
/// Allowed in any case.
const ENDS: &str = "#!lua flags=allow-oom";

/// The functions that the scripts share.
const COMMON: &str = r"
local value = redis.call('GET', KEYS[1])
local function now()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function is_readable()
  return #value >= 72 and value:sub(1, 5) == 'tars\1'
end
local function version()
  return value:sub(57, 72)
end
local function state()
  return value:sub(6, 6)
end
local function is_held(id)
  return (state() == '1' or state() == '2') and value:sub(7, 22) == id
end
local function lease(length)
  return string.format('%013d', now() + tonumber(length))
end
local function set(written, length)
  if length == '' then
    redis.call('SET', KEYS[1], written)
  else
    redis.call('SET', KEYS[1], written, 'PX', length)
  end
end
local function publish(channel, message)
  redis.pcall('PUBLISH', channel, message)
end
local function is_late(deadline)
  return now() > tonumber(deadline)
end
if value and not is_readable() and not overwrites then
  return {'unreadable', value}
end
";

/// `ARGV`: the value, its lifetime, the channel and message, the deadline.
const INSERT: &str = r"
if is_late(ARGV[5]) then return {'late'} end
if value then return {'found', value} end
set(ARGV[1], ARGV[2])
publish(ARGV[3], ARGV[4])
return {'done'}
";

/// `ARGV`: the value, its lifetime, the channel and message, the deadline.
const REPLACE: &str = r"
if is_late(ARGV[5]) then return {'late'} end
set(ARGV[1], ARGV[2])
publish(ARGV[3], ARGV[4])
return {'done'}
";

/// `ARGV`: the version, the claim, the length of its lease, the deadline.
const CLAIM: &str = r"
if is_late(ARGV[4]) then return {'late'} end
if not value then return {'absent'} end
if version() ~= ARGV[1] then return {'found', value} end
local in_doubt = state() ~= '0'
if is_held(ARGV[2]) then
  in_doubt = state() == '2'
elseif state() == '1' or state() == '2' then
  -- A lease that can't be read is over, which leaves the token in doubt.
  local left = (tonumber(value:sub(23, 35)) or 0) - now()
  if left > 0 then return {'busy', left} end
end
redis.call('SETRANGE', KEYS[1], 5, (in_doubt and '2' or '1') .. ARGV[2] .. lease(ARGV[3]))
return {'done', in_doubt and 1 or 0}
";

/// `ARGV`: the version, the claim, the length of its lease.
const RENEW: &str = r"
if not value or version() ~= ARGV[1] or not is_held(ARGV[2]) then return {'absent'} end
redis.call('SETRANGE', KEYS[1], 22, lease(ARGV[3]))
return {'done'}
";

/// `ARGV`: the version, the claim, `1` if it ends in doubt.
const RELEASE: &str = r"
if not value or version() ~= ARGV[1] or not is_held(ARGV[2]) then return {'absent'} end
if state() == '1' and ARGV[3] == '0' then
  redis.call('SETRANGE', KEYS[1], 5, string.rep('0', 30))
else
  redis.call('SETRANGE', KEYS[1], 5, '3')
end
return {'done'}
";

/// Done, too, if an earlier attempt of the call has written the value.
///
/// Not published: with ten subscribers a server commits 23 % less often (18,200 and 14,000 times a second), and each
/// process with the session would read the record, whether or not it needs other tokens.
///
/// `ARGV`: the value, its lifetime, the version that was claimed.
const COMMIT: &str = r"
if not value then return {'absent'} end
if version() == ARGV[1]:sub(57, 72) then return {'done'} end
if version() ~= ARGV[3] then return {'found', value} end
set(ARGV[1], ARGV[2])
return {'done'}
";

/// An attempt before may have deleted the value, and too few replicas have that: what is written in its place and deleted
/// again reaches them after it.
///
/// `ARGV`: the version, the channel and message.
const CLEAR: &str = r"
if not value then
  redis.call('SET', KEYS[1], '')
  redis.call('DEL', KEYS[1])
  return {'done'}
end
if version() ~= ARGV[1] then return {'found', value} end
redis.call('DEL', KEYS[1])
publish(ARGV[2], ARGV[3])
return {'done'}
";

/// One write: PEXPIRE may delete a value that ends now, which SETRANGE after it would make anew, and if it is refused
/// after SETRANGE, the value says another end than the server has.
///
/// `ARGV`: the version, the end, the lifetime.
const EXTEND: &str = r"
if not value or version() ~= ARGV[1] then return {'absent'} end
set(value:sub(1, 35) .. ARGV[2] .. value:sub(51), ARGV[3])
return {'done'}
";

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            insert: Script::new(BEGINS, false, INSERT),
            replace: Script::new(BEGINS, true, REPLACE),
            claim: Script::new(BEGINS, false, CLAIM),
            renew: Script::new(ENDS, false, RENEW),
            release: Script::new(ENDS, false, RELEASE),
            commit: Script::new(ENDS, false, COMMIT),
            clear: Script::new(ENDS, false, CLEAR),
            extend: Script::new(ENDS, false, EXTEND),
        }
    }
}

impl Script {
    fn new(kind: &str, overwrites: bool, body: &str) -> Self {
        let source = format!("{kind}\nlocal overwrites = {overwrites}{COMMON}{body}");
        let hash = redis::Script::new(&source).get_hash().to_owned();
        Self { source, hash }
    }

    /// Returns the call of the script. If it is named by its source, the server then knows it.
    pub(super) fn call(&self, named: Named, key: &[u8], arguments: &[&[u8]]) -> Cmd {
        let (name, script) = match named {
            Named::ByHash => ("EVALSHA", &self.hash),
            Named::BySource => ("EVAL", &self.source),
        };
        let mut call = cmd(name);
        call.arg(script).arg(1).arg(key);
        for argument in arguments {
            call.arg(*argument);
        }
        call
    }
}

/// Returns the value of an entry that has no claim.
pub(super) fn encode(codec: &Codec, version: u128, entry: &Entry) -> Result<Wiped, Problem> {
    let record = codec.encode(version, entry)?;
    let mut value = Wiped::from(Vec::with_capacity(HEAD + record.len()));
    value.extend_from_slice(MAGIC);
    value.push(FORMAT);
    value.extend_from_slice(&[b'0'; 1 + 16 + LEASE]);
    value.extend_from_slice(entry.expires_at().map_or_else(|| "0".repeat(END), end).as_bytes());
    value.extend_from_slice(&record);
    Ok(value)
}

/// Returns the record of a value.
pub(super) fn decode(codec: &Codec, value: &mut [u8]) -> Result<Record, Problem> {
    if value.starts_with(MAGIC) && value.get(4).is_some_and(|format| *format > FORMAT) {
        let reason = format!("the value has format {}, of a later version of this program", value[4]);
        return Err(Problem::new(StoreErrorKind::NewerFormat, reason));
    }
    let damaged = || {
        let reason = "the value is damaged, or isn't a record; remove it to sign in again";
        Problem::new(StoreErrorKind::Corrupt, reason)
    };
    let is_ours = value.starts_with(MAGIC);
    let (head, record) = value.split_at_mut_checked(HEAD).filter(|_| is_ours).ok_or_else(damaged)?;
    let end = std::str::from_utf8(&head[HEAD - END..]).ok().and_then(|end| end.parse().ok()).ok_or_else(damaged)?;
    let record = codec.decode(record)?;
    Ok(match time(end) {
        Some(end) if end > UNIX_EPOCH => {
            Record::new(record.version().clone(), record.entry().clone().with_expires_at(end))
        }
        _ => record,
    })
}

/// Returns the end of a record, as a value holds it.
pub(super) fn end(at: SystemTime) -> String {
    // As an entry keeps it.
    format!("{:0END$}", millis(at).clamp(1, 253_402_300_799_999))
}

/// Returns the time until the end of a record, in milliseconds, at least 1: a lifetime of none is an error.
///
/// The server counts it by its own clock, which need not agree with that of this host.
pub(super) fn lifetime(end: SystemTime) -> String {
    end.duration_since(SystemTime::now()).unwrap_or_default().as_millis().max(1).to_string()
}

/// Returns `true` if a script has refused to run after the end of its call.
pub(super) fn is_late(answer: &Value) -> bool {
    matches!(answer, Value::Array(parts) if parts.first() == Some(&Value::BulkString(b"late".to_vec())))
}

/// Returns the length of a lease in milliseconds, within what a value can hold.
pub(super) fn lease(length: Duration) -> String {
    u64::try_from(length.as_millis()).unwrap_or(LONGEST_LEASE).min(LONGEST_LEASE).to_string()
}
