//! [`Credentials`]: what a request carries, written out.

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use http::header::Entry;
use http::{HeaderMap, HeaderValue};
use secrecy::zeroize::Zeroizing;

use crate::layer::Options;
use crate::refresh::Generation;
use crate::session::{Revision, Snapshot};
use crate::store::Epoch;

/// The token in force as the value of its header (RFC 9110 §11.4), if there is one.
pub(crate) struct Credentials<'a> {
    pub(crate) epoch: Epoch,
    pub(crate) generation: Generation,
    /// Not 0 if the acceptance of the request is to be recorded: see [`Snapshot::watch`].
    pub(crate) watch: u32,
    value: Option<Cow<'a, HeaderValue>>,
}

/// What a service put on its last requests: on the next one too, while the session stays as it is.
///
/// It belongs to one service and not to the session: to clone a value is to count a reference, and a count that all
/// threads write to costs them more than to copy the token each time. A clone of the service begins anew.
#[derive(Default)]
pub(crate) enum LastCredentials {
    #[default]
    Unused,
    /// One request was made. Nothing is kept yet: a service that is cloned for each request makes no other.
    Used(Revision),
    /// More were made.
    Kept(Revision, Credentials<'static>),
}

impl Credentials<'_> {
    pub(crate) fn in_force(snapshot: &Snapshot, options: &Options) -> Self {
        Self::new(snapshot, written(snapshot, options).map(Bytes::from))
    }

    fn new(snapshot: &Snapshot, written: Option<Bytes>) -> Self {
        let value = written.map(|written| {
            let mut value = HeaderValue::from_maybe_shared(written)
                .expect("scheme and token were checked where they entered: visible ASCII");
            value.set_sensitive(true);
            Cow::Owned(value)
        });
        Self { epoch: snapshot.epoch, generation: snapshot.generation, watch: snapshot.watch(), value }
    }

    /// Whether there are none: the session has no token.
    pub(crate) fn is_empty(&self) -> bool {
        self.value.is_none()
    }

    /// Puts them on a request. `false` if its caller has set the header himself, or as many headers as fit, or if there
    /// are none.
    pub(crate) fn attach(self, headers: &mut HeaderMap, options: &Options) -> bool {
        let Some(value) = self.value else { return false };
        // Looked up once: to hash a name takes longer than all the rest of this.
        match headers.try_entry(&options.header) {
            Ok(Entry::Vacant(entry)) => entry.try_insert(value.into_owned()).is_ok(),
            Ok(Entry::Occupied(_)) | Err(_) => false,
        }
    }

    /// Makes room on a request for what [`fill`](Self::fill) puts there. `false` if it has as many headers as fit.
    pub(crate) fn reserve(headers: &mut HeaderMap, options: &Options) -> bool {
        headers.try_insert(options.header.clone(), HeaderValue::from_static("")).is_ok()
    }

    /// Puts them where room was made, or gives the room up: `false` if there are none.
    pub(crate) fn fill(these: Option<Self>, headers: &mut HeaderMap, options: &Options) -> bool {
        if let Some(value) = these.and_then(|these| these.value)
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
    /// Those of the last request, if the session is as it was then.
    #[inline]
    pub(crate) fn at(&self, revision: Revision) -> Option<Credentials<'_>> {
        match self {
            Self::Kept(of, Credentials { epoch, generation, watch, value }) if *of == revision => {
                let value = value.as_deref().map(Cow::Borrowed);
                Some(Credentials { epoch: *epoch, generation: *generation, watch: *watch, value })
            }
            _ => None,
        }
    }

    /// Those in force, remembered for the next request. `revision` is one that was read before the snapshot.
    pub(crate) fn write(&mut self, revision: Revision, snapshot: &Snapshot, options: &Options) -> Credentials<'static> {
        let again = matches!(self, Self::Used(of) if *of == revision);
        // Where a token is to be refreshed early, each request has to look at the clock.
        if again && snapshot.due.is_none() && snapshot.tokens.access_token().is_some() {
            // It may be kept for long, so it is wiped when it goes, like the token itself.
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

/// Scheme and token. The token's bytes are copied: see [`LastCredentials`].
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
        }
    }

    /// What the next request carries, and whether it had to be written.
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
    async fn they_are_kept_from_the_second_request_on_until_the_session_changes() {
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
    async fn they_are_not_kept_where_each_request_has_to_look_at_the_clock() {
        let session = session(true).await;
        let last = &mut LastCredentials::default();
        for _ in 0..3 {
            assert!(next(last, &session).1);
        }
    }

    #[tokio::test]
    async fn kept_ones_are_sensitive_and_in_no_debug_output() {
        let session = session(false).await;
        let last = &mut LastCredentials::default();
        for _ in 0..3 {
            assert!(next(last, &session).0.unwrap().is_sensitive());
            assert!(!format!("{last:?}").contains("a1"));
        }
    }
}
