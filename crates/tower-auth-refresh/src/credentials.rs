//! [`Credentials`]: the token in force as the value of a header.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::header::Entry;
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use crate::options::Options;
use crate::refresh::Generation;
use crate::session::{Phase, Revision, Snapshot};
use crate::store::Epoch;

/// The token in force as the value of its header (RFC 9110 §11.4); empty if the session has no token.
pub(crate) struct Credentials<'a> {
    pub(crate) epoch: Epoch,
    pub(crate) generation: Generation,
    value: Option<Cow<'a, HeaderValue>>,
}

/// The credentials of a service's last request, reused until the session changes.
///
/// They belong to one service and not to the session. To clone a header value is to count a reference, and a count that
/// all threads write (cache-line contention) costs more than a copy of the token for each request. A clone of the
/// service starts without any.
#[derive(Default)]
pub(crate) enum LastCredentials {
    #[default]
    Unused,
    /// One request was made. Nothing is kept yet: a service that is cloned for each request makes no second one.
    Used(Revision),
    /// More than one request was made.
    Kept(Revision, Credentials<'static>),
}

impl Credentials<'_> {
    pub(crate) fn in_force(snapshot: &Snapshot, options: &Options) -> Self {
        Self::new(snapshot, written(snapshot, options).map(Bytes::from))
    }

    fn new(snapshot: &Snapshot, written: Option<Bytes>) -> Self {
        let value = written.map(|written| {
            let mut value = HeaderValue::from_maybe_shared(written)
                .expect("scheme and token are visible ASCII: their constructors have checked");
            value.set_sensitive(true);
            Cow::Owned(value)
        });
        Self { epoch: snapshot.epoch, generation: snapshot.generation, value }
    }

    /// Puts the credentials on a request.
    ///
    /// Returns `false` if the caller has set the header, if the map is full, or if the session has no token.
    pub(crate) fn attach(self, headers: &mut HeaderMap, options: &Options) -> bool {
        let Some(value) = self.value else { return false };
        // One look-up: to hash a name takes longer than the rest of this function.
        match headers.try_entry(&options.header) {
            Ok(Entry::Vacant(entry)) => entry.try_insert(value.into_owned()).is_ok(),
            Ok(Entry::Occupied(_)) | Err(_) => false,
        }
    }

    /// Makes room on a request for the value that [`fill`](Self::fill) puts there. Returns `false` if the map is full.
    pub(crate) fn reserve(headers: &mut HeaderMap, options: &Options) -> bool {
        headers.try_insert(options.header.clone(), HeaderValue::from_static("")).is_ok()
    }

    /// Puts the credentials where room was made. Without credentials, removes the room and returns `false`.
    pub(crate) fn fill(credentials: Option<Self>, headers: &mut HeaderMap, options: &Options) -> bool {
        if let Some(value) = credentials.and_then(|credentials| credentials.value)
            && let Some(room) = headers.get_mut(&options.header)
        {
            *room = value.into_owned();
            return true;
        }
        headers.remove(&options.header);
        false
    }
}

impl LastCredentials {
    /// Returns the credentials of the last request, if the session hasn't changed since.
    #[inline]
    pub(crate) fn at(&self, revision: Revision) -> Option<Credentials<'_>> {
        match self {
            Self::Kept(of, Credentials { epoch, generation, value }) if *of == revision => {
                let value = value.as_deref().map(Cow::Borrowed);
                Some(Credentials { epoch: *epoch, generation: *generation, value })
            }
            _ => None,
        }
    }

    /// Returns the credentials in force and keeps them for the next request. `revision` was read before the snapshot.
    pub(crate) fn write(&mut self, revision: Revision, snapshot: &Snapshot, options: &Options) -> Credentials<'static> {
        let again = matches!(self, Self::Used(of) if *of == revision);
        // If tokens are refreshed early, each request has to read the clock. During a refresh, each has to make sure that
        // it isn't the refresh call.
        let is_settled = snapshot.due.is_none() && snapshot.phase != Phase::Refreshing;
        if again && is_settled && snapshot.tokens.access_token().is_some() {
            // The value may be kept for long, so it is wiped on drop like the token itself.
            let written = written(snapshot, options).map(|written| Bytes::from_owner(Zeroizing::new(written)));
            *self = Self::Kept(revision, Credentials::new(snapshot, written));
        } else {
            *self = Self::Used(revision);
        }
        Credentials::in_force(snapshot, options)
    }
}

impl fmt::Debug for LastCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LastCredentials").finish_non_exhaustive()
    }
}

/// Writes scheme and token. The token's bytes are copied: see [`LastCredentials`].
fn written(snapshot: &Snapshot, options: &Options) -> Option<Vec<u8>> {
    let token = snapshot.tokens.access_token()?.expose_secret();
    let mut text = Vec::with_capacity(options.scheme.len() + 1 + token.len());
    if !options.scheme.is_empty() {
        text.extend_from_slice(options.scheme.as_bytes());
        text.push(b' ');
    }
    text.extend_from_slice(token.as_bytes());
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::header::AUTHORIZATION;
    use tower::service_fn;

    use super::*;
    use crate::{
        AccessToken, ChallengePolicy, Origins, RefreshError, RefreshRequest, RefreshToken, ReplayLimit, Session, Tokens,
    };

    fn tokens(access: &str) -> Tokens {
        Tokens::new(AccessToken::new(access).unwrap(), RefreshToken::new("r").unwrap())
    }

    async fn session(early: bool) -> Session {
        let refresh = service_fn(|_: RefreshRequest| async { Ok::<_, RefreshError>(Tokens::default()) });
        let builder = Session::builder(refresh).tokens(tokens("a1").with_expires_in(Duration::from_secs(600)));
        let builder = if early { builder.refresh_early(Duration::from_secs(60)) } else { builder };
        builder.build().await.unwrap()
    }

    fn options() -> Options {
        Options {
            origins: Origins::default(),
            challenge: ChallengePolicy::default(),
            header: AUTHORIZATION,
            scheme: "Bearer".into(),
            replay_limit: ReplayLimit::DEFAULT,
            one_piece: crate::replay::OnePiece::default(),
            require_token: false,
        }
    }

    /// Returns the header of the next request, and `true` if its value had to be written.
    fn next(last: &mut LastCredentials, session: &Session) -> (Option<HeaderValue>, bool) {
        let mut headers = HeaderMap::new();
        let revision = session.cell().revision();
        let kept = last.at(revision).map(|credentials| credentials.attach(&mut headers, &options()));
        if kept.is_none() {
            last.write(revision, &session.cell().snapshot(), &options()).attach(&mut headers, &options());
        }
        (headers.remove(AUTHORIZATION), kept.is_none())
    }

    #[tokio::test]
    async fn credentials_are_kept_from_the_second_request_on_until_the_session_changes() {
        let session = session(false).await;
        let last = &mut LastCredentials::default();
        for (token, signs_in) in [("a1", false), ("a2", true)] {
            if signs_in {
                session.sign_in(tokens(token)).await.unwrap();
            }
            let value = HeaderValue::try_from(format!("Bearer {token}")).ok();
            for written in [true, true, false, false] {
                assert_eq!(next(last, &session), (value.clone(), written));
            }
        }
        session.sign_out().await.unwrap();
        for _ in 0..3 {
            assert_eq!(next(last, &session), (None, true));
        }
    }

    #[tokio::test]
    async fn credentials_are_not_kept_if_tokens_are_refreshed_early() {
        let session = session(true).await;
        let last = &mut LastCredentials::default();
        for _ in 0..3 {
            assert!(next(last, &session).1);
        }
    }

    #[tokio::test]
    async fn kept_credentials_are_sensitive_and_in_no_debug_output() {
        let session = session(false).await;
        let last = &mut LastCredentials::default();
        for _ in 0..3 {
            assert!(next(last, &session).0.unwrap().is_sensitive());
            assert!(!format!("{last:?}").contains("a1"));
        }
    }
}
