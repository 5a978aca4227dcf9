//! [`Families`]: the state of the authorization server, one small record per token family.
//!
//! A family is one sign-in with all tokens that were issued for it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::settings::{Rotation, Settings};
use crate::token::{Kind, Mint, Token, TokenPair};

/// The number of ended families to remember, so that a late use of their tokens isn't taken for an unknown token.
const ENDED_REMEMBERED: usize = 65_536;

pub(crate) struct Families {
    mint: Mint,
    by_id: HashMap<u64, Family>,
    ended: VecDeque<u64>,
    last: u64,
}

struct Family {
    user: Arc<str>,
    access: Token,
    refresh: Token,
    /// Access tokens up to this generation are expired, whatever expiry they carry.
    expired_through: u64,
    /// The newest generation that the API has refused.
    challenged_through: u64,
    /// The generation of the refresh token that the last rotation superseded, and the time of that rotation.
    superseded: Option<(u64, u64)>,
    /// The generation of the superseded refresh token that may be presented once more.
    reusable_once: Option<u64>,
    ended: bool,
}

/// The kind of a granted refresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Grant {
    #[default]
    Ordinary,
    /// The current access token with a new refresh token.
    SameAccessToken,
    /// An access token that the API refuses.
    Refused,
    /// A new access token only: the refresh token stays valid.
    KeepRefreshToken,
}

/// The outcome of presenting a refresh token.
#[derive(Debug)]
pub(crate) struct Refreshed {
    /// The new pair, or the reason for the refusal.
    pub(crate) outcome: Result<TokenPair, &'static str>,
    /// For the log.
    pub(crate) note: Option<&'static str>,
    /// Set if the response carries the successor of the presented token.
    pub(crate) rotated: bool,
    /// Set if the presented token had been superseded already.
    pub(crate) reuse: Option<Reuse>,
}

#[derive(Debug)]
pub(crate) struct Reuse {
    pub(crate) current: u64,
    pub(crate) is_allowed: bool,
}

/// The API's check of an access token.
#[derive(Debug)]
pub(crate) struct Checked {
    pub(crate) verdict: Result<(), &'static str>,
    /// Set if this is the first refusal of the token's generation.
    pub(crate) first_challenge: bool,
}

impl Families {
    pub(crate) fn new() -> Self {
        Self { mint: Mint::new(), by_id: HashMap::new(), ended: VecDeque::new(), last: 0 }
    }

    pub(crate) fn read(&self, text: &str) -> Option<Token> {
        self.mint.read(text)
    }

    pub(crate) fn user(&self, token: Token) -> Option<&Arc<str>> {
        self.by_id.get(&token.family).map(|family| &family.user)
    }

    pub(crate) fn sign_in(&mut self, user: &str, settings: &Settings, now: u64) -> TokenPair {
        self.last += 1;
        let id = self.last;
        let family = Family {
            user: user.into(),
            access: issue(Kind::Access, id, 1, settings, now),
            refresh: issue(Kind::Refresh, id, 1, settings, now),
            expired_through: 0,
            challenged_through: 0,
            superseded: None,
            reusable_once: None,
            ended: false,
        };
        let pair = family.pair(&self.mint, now);
        self.by_id.insert(id, family);
        pair
    }

    pub(crate) fn refresh(&mut self, token: Token, grant: Grant, settings: &Settings, now: u64) -> Refreshed {
        let rejected = |reason| Refreshed { outcome: Err(reason), note: Some(reason), rotated: false, reuse: None };
        let Some(family) = self.by_id.get_mut(&token.family).filter(|_| token.kind == Kind::Refresh) else {
            return rejected("unknown");
        };
        if token.generation < family.refresh.generation {
            let is_allowed = family.reusable_once.take_if(|generation| *generation == token.generation).is_some();
            let reuse = Some(Reuse { current: family.refresh.generation, is_allowed });
            if family.in_grace(token.generation, settings.rotation, now) {
                if family.has_expired(family.access, now) {
                    family.renew(grant, false, settings, now);
                }
                let pair = family.pair(&self.mint, now);
                return Refreshed { outcome: Ok(pair), note: Some("grace"), rotated: true, reuse };
            }
            self.end(token.family);
            return Refreshed { reuse, ..rejected("reused") };
        }
        if family.ended {
            return rejected("revoked");
        }
        if now >= token.expires {
            return rejected("expired");
        }
        let rotated = settings.rotation != Rotation::Reusable && grant != Grant::KeepRefreshToken;
        family.renew(grant, rotated, settings, now);
        let pair = family.pair(&self.mint, now);
        Refreshed { outcome: Ok(pair), note: None, rotated, reuse: None }
    }

    pub(crate) fn check(&mut self, token: Option<Token>, now: u64) -> Checked {
        let refused = |reason| Checked { verdict: Err(reason), first_challenge: false };
        let Some(token) = token.filter(|token| token.kind != Kind::Refresh) else {
            return refused("unknown");
        };
        let Some(family) = self.by_id.get_mut(&token.family) else {
            return refused("unknown");
        };
        let reason = if family.ended {
            "revoked"
        } else if family.has_expired(token, now) {
            "expired"
        } else if token.kind == Kind::RefusedAccess {
            "refused"
        } else {
            return Checked { verdict: Ok(()), first_challenge: false };
        };
        let first_challenge = token.generation > family.challenged_through;
        family.challenged_through = family.challenged_through.max(token.generation);
        Checked { verdict: Err(reason), first_challenge }
    }

    /// Allows one more use of this superseded token, whose successor the client may not have received.
    pub(crate) fn allow_reuse_once(&mut self, token: Token) {
        if let Some(family) = self.by_id.get_mut(&token.family) {
            family.reusable_once = Some(token.generation);
        }
    }

    /// Allows one more use of the token that the last rotation superseded, in each of the user's families.
    pub(crate) fn allow_reuse_once_by(&mut self, user: &str) {
        for family in self.of(Some(user)) {
            family.reusable_once = family.superseded.map(|(generation, _)| generation);
        }
    }

    pub(crate) fn expire(&mut self, user: Option<&str>) {
        for family in self.of(user) {
            family.expired_through = family.access.generation;
        }
    }

    pub(crate) fn revoke(&mut self, user: Option<&str>) {
        let ids: Vec<_> = self.of(user).map(|family| family.refresh.family).collect();
        for id in ids {
            self.end(id);
        }
    }

    pub(crate) fn end(&mut self, id: u64) {
        let Some(family) = self.by_id.get_mut(&id).filter(|family| !family.ended) else { return };
        family.ended = true;
        self.ended.push_back(id);
        if self.ended.len() > ENDED_REMEMBERED
            && let Some(oldest) = self.ended.pop_front()
        {
            self.by_id.remove(&oldest);
        }
    }

    fn of<'a>(&'a mut self, user: Option<&'a str>) -> impl Iterator<Item = &'a mut Family> {
        self.by_id.values_mut().filter(move |family| user.is_none_or(|user| *family.user == *user))
    }
}

impl Family {
    fn renew(&mut self, grant: Grant, rotate: bool, settings: &Settings, now: u64) {
        let id = self.refresh.family;
        if grant != Grant::SameAccessToken {
            let kind = if grant == Grant::Refused { Kind::RefusedAccess } else { Kind::Access };
            self.access = issue(kind, id, self.access.generation + 1, settings, now);
        }
        if rotate {
            self.superseded = Some((self.refresh.generation, now));
            self.refresh = issue(Kind::Refresh, id, self.refresh.generation + 1, settings, now);
        }
    }

    /// Returns `true` if an access token of this family has expired.
    fn has_expired(&self, access: Token, now: u64) -> bool {
        now >= access.expires || access.generation <= self.expired_through
    }

    fn in_grace(&self, generation: u64, rotation: Rotation, now: u64) -> bool {
        let (Rotation::Grace(window), Some((superseded, at))) = (rotation, self.superseded) else { return false };
        !self.ended && generation == superseded && now <= at.saturating_add(micros(window))
    }

    fn pair(&self, mint: &Mint, now: u64) -> TokenPair {
        TokenPair {
            access_token: mint.write(self.access),
            refresh_token: mint.write(self.refresh),
            expires_in: self.access.expires.saturating_sub(now) / 1_000_000,
            token_type: "Bearer".into(),
        }
    }
}

fn issue(kind: Kind, family: u64, generation: u64, settings: &Settings, now: u64) -> Token {
    let lifetime = match kind {
        Kind::Refresh => settings.refresh_lifetime.map_or(u64::MAX, micros),
        Kind::Access | Kind::RefusedAccess => micros(settings.access_lifetime),
    };
    Token { kind, family, generation, expires: now.saturating_add(lifetime) }
}

/// Converts to whole microseconds, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
