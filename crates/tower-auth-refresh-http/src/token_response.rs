//! [`TokenFields::tokens`]: a token response that another crate has received.

use serde_core::Serialize;
use tower_auth_refresh::Tokens;

use crate::answer::Answer;
use crate::classify::{Call, Classifier};
use crate::cookie::ReceivedCookies;
use crate::error::AuthServerError;
use crate::fields::{Granted, TokenFields};

impl TokenFields {
    /// Reads the tokens of a fresh token response: of `oauth2` 5, `openidconnect` 4, or any other in JSON.
    ///
    /// The response is read as the answer to an [`OAuthRefresh`](crate::OAuthRefresh) is. Its further members (the ID
    /// token, the scope, a vendor's own) are kept in the [`Tokens`], except for `token_type`. A lifetime counts from
    /// now: read a response as soon as it arrives.
    ///
    /// # Errors
    ///
    /// [`AuthServerError`] if the response isn't a JSON object, holds no access token or a malformed token, or is an
    /// error. As the error of a refresh service it is classified, and keeps a refresh token that the response issued.
    ///
    /// # Examples
    ///
    /// ```
    /// use serde_json::json;
    /// use tower_auth_refresh_http::TokenFields;
    ///
    /// let response = json!({"access_token": "a1", "refresh_token": "r1", "expires_in": 300, "scope": "notes"});
    /// let tokens = TokenFields::default().tokens(&response)?;
    /// assert_eq!(tokens.refresh_token().unwrap().expose_secret(), "r1");
    /// assert_eq!(tokens.extra("scope").unwrap(), "notes");
    /// # Ok::<(), tower_auth_refresh_http::AuthServerError>(())
    /// ```
    pub fn tokens(&self, response: &impl Serialize) -> Result<Tokens, AuthServerError> {
        // The message of the source may repeat a value: it is left out.
        let text = serde_json::to_vec(response)
            .map_err(|_| AuthServerError::misconfigured("the token response can't be written as JSON"))?;
        let mut classifier = Classifier::new(Call::OAuth);
        classifier.fields(self.clone());
        let granted = classifier.tokens(Answer::of_json(text), ReceivedCookies::default(), None);
        granted.map(Granted::into_tokens).map_err(AuthServerError::without_status)
    }
}
