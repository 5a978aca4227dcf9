//! [`SignIns`]: the sign-ins under way, by authorization code and by device code.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

/// The lifetime of an authorization code, in microseconds: 10 minutes (RFC 6749 §4.1.2).
const CODE_LIFETIME: u64 = 600_000_000;

/// The letters of a user code (RFC 8628 §6.1): no vowels, which could form words.
const USER_CODE_LETTERS: &[u8] = b"BCDFGHJKLMNPQRSTVWXZ";

#[derive(Default)]
pub(crate) struct SignIns {
    codes: HashMap<String, Code>,
    devices: HashMap<String, Device>,
}

struct Code {
    user: String,
    client_id: String,
    redirect_uri: String,
    challenge: String,
    expires: u64,
    redeemed: Option<u64>,
}

struct Device {
    user_code: String,
    client_id: String,
    expires: u64,
    last_poll: Option<u64>,
    decision: Option<Decision>,
}

#[derive(Clone)]
enum Decision {
    Approved(String),
    Denied,
}

/// An authorization request that was granted.
pub(crate) struct Authorized {
    pub(crate) user: String,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) challenge: String,
}

/// The refusal of a grant: its error code, and the family that a replayed code had started.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) code: &'static str,
    pub(crate) replayed: Option<u64>,
}

impl From<&'static str> for Refused {
    fn from(code: &'static str) -> Self {
        Self { code, replayed: None }
    }
}

impl SignIns {
    pub(crate) fn authorize(&mut self, authorized: Authorized, now: u64) -> String {
        let Authorized { user, client_id, redirect_uri, challenge } = authorized;
        let code = format!("ac_{:032x}", fastrand::u128(..));
        let expires = now.saturating_add(CODE_LIFETIME);
        self.codes.insert(code.clone(), Code { user, client_id, redirect_uri, challenge, expires, redeemed: None });
        code
    }

    /// Returns the user of a code, if the client, the redirect URI and the verifier (RFC 7636) are those of its request.
    pub(crate) fn redeem(
        &mut self,
        code: &str,
        [client_id, redirect_uri, verifier]: [&str; 3],
        now: u64,
    ) -> Result<String, Refused> {
        let code = self.codes.get(code).ok_or("invalid_grant")?;
        if code.redeemed.is_some() {
            return Err(Refused { code: "invalid_grant", replayed: code.redeemed });
        }
        let challenge = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
        // A client that authenticates itself needn't repeat its id in the form.
        let is_client = client_id.is_empty() || code.client_id == client_id;
        let matches = is_client && code.redirect_uri == redirect_uri && code.challenge == challenge;
        if matches && now < code.expires { Ok(code.user.clone()) } else { Err("invalid_grant".into()) }
    }

    /// Notes the family that a code has started.
    pub(crate) fn redeemed(&mut self, code: &str, family: Option<u64>) {
        if let Some(code) = self.codes.get_mut(code) {
            code.redeemed = family;
        }
    }

    /// Returns a device code and a user code.
    pub(crate) fn begin_device(&mut self, client_id: &str, expires: u64) -> (String, String) {
        let device_code = format!("dc_{:032x}", fastrand::u128(..));
        let mut letters: Vec<u8> =
            (0..8).map(|_| USER_CODE_LETTERS[fastrand::usize(..USER_CODE_LETTERS.len())]).collect();
        letters.insert(4, b'-');
        let user_code = String::from_utf8_lossy(&letters).into_owned();
        let device = Device {
            user_code: user_code.clone(),
            client_id: client_id.to_owned(),
            expires,
            last_poll: None,
            decision: None,
        };
        self.devices.insert(device_code.clone(), device);
        (device_code, user_code)
    }

    /// Returns the user that has approved the device. The code is then used.
    pub(crate) fn poll_device(
        &mut self,
        device_code: &str,
        client_id: &str,
        interval: u64,
        now: u64,
    ) -> Result<String, Refused> {
        let device =
            self.devices.get_mut(device_code).filter(|device| client_id.is_empty() || device.client_id == client_id);
        let device = device.ok_or("invalid_grant")?;
        if now >= device.expires {
            return Err("expired_token".into());
        }
        let is_early = device.last_poll.replace(now).is_some_and(|last| now < last.saturating_add(interval));
        match device.decision.clone() {
            Some(Decision::Approved(user)) => {
                self.devices.remove(device_code);
                Ok(user)
            }
            Some(Decision::Denied) => Err("access_denied".into()),
            None if is_early => Err("slow_down".into()),
            None => Err("authorization_pending".into()),
        }
    }

    /// Decides on a device: approved by this user, or denied. Returns `false` if no device waits with this code.
    pub(crate) fn decide(&mut self, user_code: &str, user: Option<&str>, now: u64) -> bool {
        let mut waiting = self.devices.values_mut().filter(|device| device.decision.is_none() && now < device.expires);
        let Some(device) = waiting.find(|device| device.user_code.eq_ignore_ascii_case(user_code.trim())) else {
            return false;
        };
        device.decision = Some(user.map_or(Decision::Denied, |user| Decision::Approved(user.to_owned())));
        true
    }
}
