//! [`Claims`]: what is known of the user.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use tower_auth_refresh::Tokens;

/// The claims about the user, of an ID token or of the userinfo endpoint.
#[derive(Clone, Debug)]
pub(crate) struct Claims(pub(crate) Map<String, Value>);

impl Claims {
    /// Returns the claims of the ID token, which was validated at the sign-in and stored with the tokens.
    pub(crate) fn of(tokens: &Tokens) -> Option<Self> {
        let payload = tokens.extra("id_token")?.as_str()?.split('.').nth(1)?;
        let bytes = URL_SAFE_NO_PAD.decode(payload).ok()?;
        serde_json::from_slice(&bytes).ok().map(Self)
    }

    /// Returns the most telling name of the user.
    pub(crate) fn name(&self) -> String {
        let text = |name: &&str| self.0.get(*name).and_then(Value::as_str).filter(|text| !text.is_empty());
        let name = ["email", "preferred_username", "name", "sub"].iter().find_map(text);
        name.unwrap_or("an unnamed user").to_owned()
    }
}
