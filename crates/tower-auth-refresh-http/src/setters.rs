//! The setters that several calls share, each with its documentation.

/// Defines setters of a type with a `call` (`JsonCall` or `OAuthCall`) and, for those about the answer, a `classifier`.
macro_rules! setters {
    ($first:ident, $($more:ident),+) => {
        setters!($first);
        $(setters!($more);)+
    };

    (header) => {
        /// Sends a header, which may replace the `Accept` of all calls. Default: none.
        #[must_use]
        pub fn header(mut self, name: http::HeaderName, value: http::HeaderValue) -> Self {
            self.call.header(name, value);
            self
        }
    };

    (param) => {
        /// Adds a parameter: `audience`, `resource` (RFC 8707). Default: none. May be called more than once.
        ///
        /// A `grant_type` replaces the usual one.
        #[must_use]
        pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.call.param(name, value);
            self
        }
    };

    (member) => {
        /// Adds a member to the request: a device id, a GraphQL query. Default: none. May be called more than once.
        ///
        /// The name is a path, as in [`TokenFields`](crate::TokenFields).
        #[must_use]
        pub fn member(mut self, path: impl AsRef<str>, value: impl Into<serde_json::Value>) -> Self {
            self.call.member(path.as_ref(), value.into());
            self
        }
    };

    (content_type) => {
        /// Sets the `Content-Type` of a request that has a body. Default: `application/json`.
        #[must_use]
        pub fn content_type(mut self, value: http::HeaderValue) -> Self {
            self.call.content_type(value);
            self
        }
    };

    (client_auth) => {
        /// Authenticates the client, as OAuth 2.0 does: by HTTP Basic, or by members of the body. Default: it doesn't.
        #[must_use]
        pub fn client_auth(mut self, auth: crate::ClientAuth) -> Self {
            self.call.client_auth(auth);
            self
        }
    };

    (refresh_token_field) => {
        /// Sends the refresh token in the body, at this path. Default: `refresh_token`.
        #[must_use]
        pub fn refresh_token_field(mut self, path: impl AsRef<str>) -> Self {
            self.call.refresh_token_field(path.as_ref());
            self
        }
    };

    (refresh_token_as_bearer) => {
        /// Sends the refresh token as `Authorization: Bearer …`, not in the body. Default: in the body.
        #[must_use]
        pub fn refresh_token_as_bearer(mut self) -> Self {
            self.call.refresh_token_as_bearer();
            self
        }
    };

    (header_from_cookie) => {
        /// Repeats the value of another cookie in a header, against CSRF ("double submit"). Default: none.
        ///
        /// The cookie is kept in [`Tokens::extra`](tower_auth_refresh::Tokens::extra)`("kept_cookies")`, sent back, and
        /// replaced by each refresh that sets it. The header holds its percent-decoded value. May be called more than
        /// once.
        ///
        /// Without the cookie the call fails as misconfigured, before anything is sent.
        /// [`JsonLogin::keep_cookie`](crate::JsonLogin::keep_cookie) signs in with it; an app that signs in otherwise
        /// adds `{"kept_cookies": {"csrf_token": {"value": "…"}}}` by
        /// [`Tokens::with_extra`](tower_auth_refresh::Tokens::with_extra).
        #[must_use]
        pub fn header_from_cookie(mut self, header: http::HeaderName, cookie: impl Into<String>) -> Self {
            self.call.cookies.header(header, cookie.into());
            self
        }
    };

    (access_token_cookie) => {
        /// Takes the access token from this cookie of the answer. Default: from the body.
        ///
        /// The body is then optional. The cookie's expiry is that of the access token, if nothing else is known of it.
        #[must_use]
        pub fn access_token_cookie(mut self, name: impl Into<String>) -> Self {
            self.call.cookies.access = Some(name.into());
            self
        }
    };

    (fields) => {
        /// Sets the places of the tokens in the answer. Default: [`TokenFields::default`](crate::TokenFields).
        #[must_use]
        pub fn fields(mut self, fields: crate::TokenFields) -> Self {
            self.classifier.fields(fields);
            self
        }
    };

    (rejected_when) => {
        /// Adds a rule by which an answer rejects the refresh token and ends the session. Default: the table
        /// [above](Self).
        ///
        /// The predicate sees every answer first, with a body of `null` where it isn't JSON. For a server that answers
        /// a dead refresh token with a bare 400, and nothing else:
        ///
        /// ```
        /// # use tower_auth_refresh_http::OAuthRefresh;
        /// # fn with(refresh: OAuthRefresh) -> OAuthRefresh {
        /// refresh.rejected_when(|status, body| status == 400 && body.is_null())
        /// # }
        /// ```
        #[must_use]
        pub fn rejected_when(
            mut self,
            predicate: impl Fn(http::StatusCode, &serde_json::Value) -> bool + Send + Sync + 'static,
        ) -> Self {
            self.classifier.rejected_when(predicate);
            self
        }
    };
}

pub(crate) use setters;
