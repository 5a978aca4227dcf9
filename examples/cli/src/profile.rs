//! [`Profile`]: the settings of one sign-in, in a file of the user's own.
//!
//! `login` writes it, so that no other command needs a server or a client identifier. It holds no secret. A
//! user who may write it could have the tokens sent elsewhere, so no other user may.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tower_auth_refresh::{Origin, Origins, Rotation};
use tower_auth_refresh_http::ClientAuth;

use crate::args::ClientAuthMethod;
use crate::failure::{Failure, Kind};
use crate::paths::Paths;

/// The name of a profile, which is a part of file names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub(crate) struct Profile {
    /// Absent if the token endpoint was given by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) issuer: Option<String>,
    pub(crate) client_id: String,
    /// The environment variable with the client's secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) client_secret_env: Option<String>,
    #[serde(default)]
    pub(crate) client_auth: ClientAuthMethod,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) scope: Option<String>,
    /// Further parameters of the sign-in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) params: Vec<(String, String)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) redirect_uri: Option<String>,
    /// The origins that the token is sent to. Requests by path go to the first one.
    #[serde(default)]
    pub(crate) apis: Vec<String>,
    pub(crate) token_endpoint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) revocation_endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) userinfo_endpoint: Option<String>,
    /// Whether the server lets a refresh token be presented again: `strict`, `grace=SECONDS` or `reusable`.
    #[serde(default)]
    pub(crate) rotation: RotationPolicy,
    /// Whether the tokens are encrypted with a key in the system's keychain.
    pub(crate) keychain: bool,
    /// Allows `http://` to other machines.
    #[serde(default)]
    pub(crate) plain_http: bool,
}

/// A [`Rotation`], as it is written in arguments and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct RotationPolicy(pub(crate) Rotation);

impl Name {
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.is_empty() || text.starts_with('.') || !text.bytes().all(is_plain) {
            return Err("a profile's name has letters, digits, and `-`, `_`, `.` after the first");
        }
        Ok(Self(text.to_owned()))
    }
}

impl Profile {
    /// Returns the profile, and `None` if there is none.
    pub(crate) fn load(paths: &Paths, name: &Name) -> Result<Option<Self>, Failure> {
        let path = paths.profile(name.as_str());
        let failed = |error: io::Error| Failure::other(format!("{}", path.display()), error);
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        refuse_if_shared(&file, &path)?;
        let profile = serde_json::from_reader(io::BufReader::new(file));
        profile.map(Some).map_err(|error| Failure::other(format!("{}: not a profile", path.display()), error))
    }

    /// Replaces the file as a whole, so that other processes read the old profile or the new one.
    pub(crate) fn save(&self, paths: &Paths, name: &Name) -> Result<(), Failure> {
        let path = paths.profile(name.as_str());
        let write = || -> io::Result<()> {
            let directory = path.parent().unwrap_or(Path::new("."));
            private_directory(directory)?;
            let draft = path.with_extension(format!("{}.new", std::process::id()));
            let mut file = private_file(&draft)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&draft, &path)
        };
        write().map_err(|error| Failure::other(format!("{}: not written", path.display()), error))
    }

    /// The client's authentication at the authorization server.
    pub(crate) fn client_auth(&self) -> Result<ClientAuth, Failure> {
        let Some(variable) = &self.client_secret_env else { return Ok(ClientAuth::public(&self.client_id)) };
        let secret = std::env::var(variable).map_err(|_| {
            Failure::new(Kind::Other, format!("the environment variable {variable} with the client secret isn't set"))
        })?;
        Ok(match self.client_auth {
            ClientAuthMethod::Basic => ClientAuth::basic(&self.client_id, secret),
            ClientAuthMethod::Post => ClientAuth::post(&self.client_id, secret),
        })
    }

    /// The origins that the token is sent to.
    pub(crate) fn origins(&self) -> Result<Vec<Origin>, Failure> {
        let parse = |text: &String| {
            let parsed = if self.plain_http { Origin::parse_allowing_http(text) } else { Origin::parse(text) };
            parsed.map_err(|error| Failure::other(format!("the API {text:?} of the profile"), error))
        };
        self.apis.iter().map(parse).collect()
    }
}

/// The origins of a layer.
pub(crate) fn layer_origins(origins: Vec<Origin>) -> Origins {
    origins.into_iter().collect()
}

impl FromStr for RotationPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let window = |text: &str| Duration::try_from_secs_f64(text.parse().ok()?).ok();
        match (text, text.strip_prefix("grace=").map(window)) {
            ("strict", _) => Ok(Self(Rotation::Strict)),
            ("reusable", _) => Ok(Self(Rotation::Reusable)),
            (_, Some(Some(window))) => Ok(Self(Rotation::Grace(window))),
            _ => Err("strict, grace=SECONDS or reusable".to_owned()),
        }
    }
}

impl TryFrom<String> for RotationPolicy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<RotationPolicy> for String {
    fn from(RotationPolicy(rotation): RotationPolicy) -> Self {
        match rotation {
            Rotation::Grace(window) => format!("grace={}", window.as_secs_f64()),
            Rotation::Reusable => "reusable".to_owned(),
            _ => "strict".to_owned(),
        }
    }
}

/// Makes a directory that only the user may open.
fn private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Makes a file that only the user may read.
fn private_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

#[cfg(unix)]
fn refuse_if_shared(file: &File, path: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::other(format!("{}", path.display()), error);
    let directory = fs::metadata(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
    if is_private(&file.metadata().map_err(failed)?) && is_private(&directory) {
        return Ok(());
    }
    let failure = Failure::new(Kind::Other, format!("{}: other users may change it", path.display()));
    let commands = "chmod 600 FILE; chmod 700 DIRECTORY";
    Err(failure.with_hint(format!("it and its directory must be yours, and writable for you alone: {commands}")))
}

/// Returns `true` if only this user, and root, may write.
#[cfg(unix)]
fn is_private(found: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;

    let (root, own) = (0, rustix::process::geteuid().as_raw());
    found.mode() & 0o022 == 0 && [root, own].contains(&found.uid())
}

#[cfg(not(unix))]
fn refuse_if_shared(_: &File, _: &Path) -> Result<(), Failure> {
    Ok(())
}
