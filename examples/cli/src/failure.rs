//! [`Failure`]: the error of a command, its exit code and its way to the user.

use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::{Value, json};
use tower::BoxError;
use tower_auth_refresh::{NotRefreshed, RefreshErrorKind, RefreshReport};

/// The kind of a failure. Scripts depend on the exit codes and names: they never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Anything else: a file, the profile, an answer that makes no sense.
    Other,
    /// The command line, as clap reports it too.
    Usage,
    /// No user is signed in, or the session has ended.
    SignInRequired,
    /// The authorization server or the API can't be reached. The user is still signed in.
    Unavailable,
    /// The sign-in was denied, has expired, or was given up.
    NotSignedIn,
    /// The API answered with an error.
    ApiError,
    /// A signal has ended the command.
    Interrupted(u8),
}

impl Kind {
    /// The kind of a refresh that gave no token.
    pub(crate) fn of(why: &NotRefreshed) -> Self {
        match why {
            why if why.requires_sign_in() => Self::SignInRequired,
            NotRefreshed::Failed(error) | NotRefreshed::CoolingDown(error) => match error.kind() {
                RefreshErrorKind::Unavailable | RefreshErrorKind::InDoubt => Self::Unavailable,
                _ => Self::Other,
            },
            _ => Self::Other,
        }
    }

    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Other => 1,
            Self::Usage => 2,
            Self::SignInRequired => 3,
            Self::Unavailable => 4,
            Self::NotSignedIn => 5,
            Self::ApiError => 6,
            Self::Interrupted(signal) => 128 + signal,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Other => "failed",
            Self::Usage => "usage",
            Self::SignInRequired => "sign_in_required",
            Self::Unavailable => "unavailable",
            Self::NotSignedIn => "not_signed_in",
            Self::ApiError => "api_error",
            Self::Interrupted(_) => "interrupted",
        }
    }
}

/// The error of a command.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    message: String,
    source: Option<BoxError>,
    /// The next step for the user.
    hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, hint: None }
    }

    pub(crate) fn other(message: impl Into<String>, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()), ..Self::new(Kind::Other, message) }
    }

    pub(crate) fn with_source(self, source: impl Into<BoxError>) -> Self {
        Self { source: Some(source.into()), ..self }
    }

    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// A session that has no token worth sending.
    pub(crate) fn no_token(why: NotRefreshed, login: &str) -> Self {
        let kind = Kind::of(&why);
        let failure = Self::new(kind, "the access token can't be renewed").with_source(why);
        match kind {
            Kind::SignInRequired => failure.with_hint(format!("sign in again: {login}")),
            Kind::Unavailable => failure.with_hint("you are still signed in; try again later"),
            _ => failure,
        }
    }

    /// A 401 of the API.
    pub(crate) fn refused(report: &RefreshReport, login: &str) -> Self {
        match report {
            RefreshReport::NotRefreshed(NotRefreshed::RequestRefused) => {
                Self::new(Kind::ApiError, "the API refused the request").with_source(report.clone())
            }
            RefreshReport::NotRefreshed(why) => Self::no_token(why.clone(), login),
            RefreshReport::StepUp(_) => {
                let failure = Self::new(Kind::SignInRequired, "the API refused the token").with_source(report.clone());
                failure.with_hint(format!("sign in again: {login}"))
            }
            other => Self::new(Kind::ApiError, "the API refused the token").with_source(other.clone()),
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.kind.exit_code())
    }

    /// The message and its causes, in one line.
    pub(crate) fn line(&self) -> String {
        let mut line = self.message.clone();
        let mut cause = self.source.as_deref().map(|source| source as &(dyn Error + 'static));
        while let Some(error) = cause {
            let text = error.to_string();
            // Some errors repeat their cause.
            if !line.ends_with(&text) {
                let _ = write!(line, ": {text}");
            }
            cause = error.source();
        }
        line
    }

    pub(crate) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    pub(crate) fn to_json(&self) -> Value {
        json!({"error": {
            "code": self.kind.name(), "exit_code": self.kind.exit_code(), "message": self.line(), "hint": self.hint,
        }})
    }
}
