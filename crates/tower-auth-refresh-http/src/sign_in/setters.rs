//! The setters that both kinds of sign-in share.

macro_rules! setters {
    () => {
        /// Requests scopes, separated by spaces. Default: the server's choice.
        ///
        /// `openid` requests an ID token, which needs the crate feature `oidc`; `offline_access` a refresh token, at many
        /// servers.
        #[must_use]
        pub fn scope(mut self, scope: impl Into<String>) -> Self {
            self.request.scope = Some(scope.into());
            self
        }

        /// Names an API that the tokens are for (RFC 8707). Default: none. May be called more than once.
        ///
        /// It is sent with the code as well. Give the refresh call the same, by `param("resource", …)`, if the server
        /// has to be told again.
        #[must_use]
        pub fn resource(mut self, uri: impl Into<String>) -> Self {
            self.request.resources.push(uri.into());
            self
        }

        /// Adds a parameter to the authorization request: `audience`, `login_hint`, `prompt`. Default: none. May be
        /// called more than once.
        #[must_use]
        pub fn param(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.request.params.add(name, value);
            self
        }

        /// Sets the places of the tokens in the answer. Default: [`TokenFields::default`](crate::TokenFields).
        #[must_use]
        pub fn fields(mut self, fields: crate::TokenFields) -> Self {
            self.request.fields(fields);
            self
        }

        /// Sets how far the clocks of this machine and of the server may differ. Default: 60 s.
        ///
        /// An ID token counts as valid for that long before its `iat` and after its `exp`.
        #[cfg(feature = "oidc")]
        #[cfg_attr(docsrs, doc(cfg(feature = "oidc")))]
        #[must_use]
        pub fn clock_tolerance(mut self, tolerance: std::time::Duration) -> Self {
            self.request.clock_tolerance(tolerance);
            self
        }

        /// Accepts an ID token that is also for this audience. Default: for the client alone. May be called more than
        /// once.
        ///
        /// Some servers add audiences of their own: ZITADEL the id of the project. The client has to be among the
        /// audiences in any case.
        #[cfg(feature = "oidc")]
        #[cfg_attr(docsrs, doc(cfg(feature = "oidc")))]
        #[must_use]
        pub fn trusted_audience(mut self, audience: impl Into<String>) -> Self {
            self.request.trusted_audience(audience.into());
            self
        }
    };
}

pub(super) use setters;
