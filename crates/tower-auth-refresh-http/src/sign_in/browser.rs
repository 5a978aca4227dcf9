//! [`BrowserSignIn`]: the authorization code grant with PKCE, in the system's browser.

use std::fmt;
use std::time::Duration;

use oauth2::basic::BasicClient;
use oauth2::{AuthUrl, ClientId, CsrfToken, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, Scope};
use tokio::time::{Instant, timeout_at};

use super::SignedIn;
use super::error::{SignInError, SignInErrorKind};
use super::loopback::{Listener, Params, RedirectUri};
use super::page::Page;
use super::request::{Keys, SignInRequest};
use super::setters::setters;
use crate::client::AuthClient;
use crate::oauth::{AuthorizationServer, ClientAuth};

/// The longest time-out, so that deadlines don't overflow.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Parameters of the authorization request that the sign-in sets itself.
const RESERVED: [&str; 9] = [
    "client_id",
    "code_challenge",
    "code_challenge_method",
    "nonce",
    "redirect_uri",
    "response_mode",
    "response_type",
    "scope",
    "state",
];

/// A sign-in in the system's browser: the authorization code grant with PKCE, for apps (RFC 8252).
///
/// - The challenge method is `S256`, and `state` and `nonce` are random (RFC 7636, RFC 9700).
/// - The browser is redirected to `127.0.0.1`, by default to a free port ([`redirect_uri`](Self::redirect_uri)).
/// - A redirect with this sign-in's `state` ends the waiting. Its `iss` has to be the server's, and has to be there if
///   the server announces it (RFC 9207).
/// - Any other request gets an error page and changes nothing: neither a stray request nor a page that guesses the port
///   can end the sign-in, or replace its code.
/// - The port is then closed, the code exchanged, and the browser shown a page that says if the sign-in succeeded. The
///   page is constant, loads nothing, and isn't stored.
/// - With the scope `openid` (crate feature `oidc`) the ID token is validated: issuer, audience, signature, nonce,
///   expiry, and `azp` and `at_hash` if they are there.
///
/// # Examples
///
/// ```no_run
/// # async fn example(session: tower_auth_refresh::Session) -> Result<(), tower::BoxError> {
/// # let http: tower_auth_refresh_http::AuthClient = unimplemented!();
/// use tower_auth_refresh_http::{AuthorizationServer, BrowserSignIn, ClientAuth};
///
/// let server = AuthorizationServer::discover(&http, "https://auth.example.com").await?;
/// let sign_in = BrowserSignIn::new(http, &server, ClientAuth::public("my-cli"))?.scope("notes offline_access");
///
/// let pending = sign_in.begin().await?;
/// println!("Open {} in a browser.", pending.url());
/// let signed_in = pending.finish().await?;
/// session.sign_in(signed_in.tokens).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct BrowserSignIn {
    request: SignInRequest,
    redirect_uri: RedirectUri,
    timeout: Duration,
}

impl BrowserSignIn {
    /// Creates a sign-in at this server, for this client.
    ///
    /// # Errors
    ///
    /// [`SignInErrorKind::Misconfigured`] if the server has no authorization endpoint, if no secret may be sent to one
    /// of its endpoints, or if the client has no id.
    pub fn new(client: AuthClient, server: &AuthorizationServer, auth: ClientAuth) -> Result<Self, SignInError> {
        let request = SignInRequest::new(client, server, auth)?;
        let endpoint = server
            .authorization_endpoint()
            .ok_or_else(|| SignInError::misconfigured("the server has no authorization endpoint"))?;
        request.call(endpoint)?;
        request.token_call()?;
        Ok(Self { request, redirect_uri: RedirectUri::any_port(), timeout: Duration::from_secs(5 * 60) })
    }

    setters!();

    /// Sets the redirect URI that the client is registered with. Default: `http://127.0.0.1/callback`, on a free port.
    ///
    /// Without a port, a free one is chosen at each sign-in, which RFC 8252 §7.3 has servers accept. With a port, only
    /// one sign-in at a time can be under way. The host is `127.0.0.1`, `[::1]`, or `localhost` for servers that know
    /// nothing else; for `localhost`, `127.0.0.1` is listened on.
    ///
    /// # Errors
    ///
    /// [`SignInErrorKind::Misconfigured`] for any other URI.
    pub fn redirect_uri(mut self, uri: &str) -> Result<Self, SignInError> {
        self.redirect_uri = RedirectUri::parse(uri)?;
        Ok(self)
    }

    /// Sets the time in which the user has to complete the sign-in. Default: 5 minutes; at most a day.
    ///
    /// It counts from [`begin`](Self::begin), up to the redirect.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(LONGEST_TIMEOUT);
        self
    }

    /// Listens on the redirect URI, and makes the URL for the browser. For `openid`, requests the server's keys.
    ///
    /// # Errors
    ///
    /// - [`SignInErrorKind::PortTaken`] if another program listens there.
    /// - [`SignInErrorKind::NoListener`] if the address can't be listened on for another reason.
    /// - [`SignInErrorKind::Misconfigured`] if a [`param`](Self::param) is one that the sign-in sets itself, or if
    ///   `openid` is requested without the crate feature `oidc` or of a server without a `jwks_uri` for secrets.
    /// - [`SignInErrorKind::Server`] if the server's keys can't be requested.
    ///
    /// # Panics
    ///
    /// If it is polled outside a `tokio` runtime whose I/O and timers are enabled.
    pub async fn begin(&self) -> Result<PendingBrowserSignIn, SignInError> {
        let issuer = self.request.check(&RESERVED)?;
        let deadline = Instant::now() + self.timeout;
        let listener = Listener::bind(&self.redirect_uri).await?;
        let (challenge, verifier) = PkceCodeChallenge::new_random_sha256();
        let nonce = self.request.is_oidc().then(|| CsrfToken::new_random().into_secret());
        let (url, state) = self.authorization_url(&listener, challenge, nonce.as_deref())?;
        let keys = self.request.keys(issuer).await?;
        let request = self.request.clone();
        Ok(PendingBrowserSignIn { request, listener, deadline, url, state, nonce, verifier, keys })
    }

    fn authorization_url(
        &self,
        listener: &Listener,
        challenge: PkceCodeChallenge,
        nonce: Option<&str>,
    ) -> Result<(String, CsrfToken), SignInError> {
        let invalid = |error| SignInError::misconfigured("the authorization endpoint is no URL").with_source(error);
        let endpoint = self.request.server.authorization_endpoint().unwrap_or_default().to_owned();
        let client = BasicClient::new(ClientId::new(self.request.auth.id().to_owned()))
            .set_auth_uri(AuthUrl::new(endpoint).map_err(invalid)?)
            .set_redirect_uri(RedirectUrl::new(listener.redirect_uri().to_owned()).map_err(invalid)?);
        let mut request = client.authorize_url(CsrfToken::new_random).set_pkce_challenge(challenge);
        if let Some(scope) = &self.request.scope {
            request = request.add_scope(Scope::new(scope.clone()));
        }
        if let Some(nonce) = nonce {
            request = request.add_extra_param("nonce", nonce.to_owned());
        }
        for resource in &self.request.resources {
            request = request.add_extra_param("resource", resource);
        }
        for (name, value) in self.request.params.iter() {
            request = request.add_extra_param(name.to_owned(), value.to_owned());
        }
        let (url, state) = request.url();
        Ok((url.into(), state))
    }
}

/// A sign-in that waits for the browser. Dropping it closes the port.
///
/// `Debug` doesn't show the URL, whose `state` is a secret until the redirect.
#[must_use = "nothing listens for the browser until the sign-in is finished"]
pub struct PendingBrowserSignIn {
    request: SignInRequest,
    listener: Listener,
    deadline: Instant,
    url: String,
    state: CsrfToken,
    nonce: Option<String>,
    verifier: PkceCodeVerifier,
    keys: Option<Keys>,
}

impl PendingBrowserSignIn {
    /// The URL to open in a browser on this machine.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The URI that the browser will be redirected to, with its port.
    #[must_use]
    pub fn redirect_uri(&self) -> &str {
        self.listener.redirect_uri()
    }

    /// Waits for the redirect, and exchanges its code for tokens.
    ///
    /// # Errors
    ///
    /// - [`SignInErrorKind::TimedOut`] if there is no redirect in [time](BrowserSignIn::timeout): the browser was closed.
    /// - [`SignInErrorKind::Denied`] or [`SignInErrorKind::Refused`] if the redirect carries an error.
    /// - [`SignInErrorKind::WrongIssuer`] if it is that of another server. Its code is not sent anywhere.
    /// - [`SignInErrorKind::Server`] if the code can't be exchanged. A code that was used before is rejected by the
    ///   server.
    /// - [`SignInErrorKind::InvalidIdToken`] if the ID token isn't valid.
    ///
    /// If the tokens were issued and the ID token is refused, or can't be validated, the tokens are revoked: in one call
    /// of at most 5 s, if the server has a revocation endpoint. A failure of that call is not reported; the tokens are
    /// then valid at the server until they expire, and in no program's hands.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the sign-in: the port and all connections to it are closed at once. If the code was
    /// being exchanged, the server may have issued tokens, which are lost.
    pub async fn finish(self) -> Result<SignedIn, SignInError> {
        let Self { request, listener, deadline, state, nonce, verifier, keys, .. } = self;
        let redirect_uri = listener.redirect_uri().to_owned();
        let redirect = timeout_at(deadline, listener.redirect(state.secret())).await;
        let redirect = redirect.map_err(|_| SignInError::timed_out())?;
        let exchanged = async {
            let code = code(&redirect.params, &request.server)?;
            let call = request.token_call()?;
            let sent = call.post(&[
                ("grant_type", "authorization_code"),
                ("code", code),
                ("redirect_uri", &redirect_uri),
                ("code_verifier", verifier.secret()),
            ]);
            let granted = async { request.granted(sent.await?) }.await.map_err(|error| error.at(&call.endpoint))?;
            request.signed_in(granted, nonce.as_deref(), keys.as_ref()).await
        };
        let signed_in = exchanged.await;
        redirect.answer(if signed_in.is_ok() { Page::SignedIn } else { Page::Failed }).await;
        signed_in
    }
}

impl fmt::Debug for PendingBrowserSignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingBrowserSignIn").field("redirect_uri", &self.redirect_uri()).finish_non_exhaustive()
    }
}

/// Returns the code in a redirect of this server.
fn code<'a>(params: &'a Params, server: &AuthorizationServer) -> Result<&'a str, SignInError> {
    let announced = server.member("authorization_response_iss_parameter_supported");
    let is_from_server = match params.get("iss") {
        Some(issuer) => issuer == server.issuer(),
        None => !params.has("iss") && announced.and_then(serde_json::Value::as_bool) != Some(true),
    };
    if !is_from_server {
        let problem = "the redirect is that of another authorization server";
        return Err(SignInError::new(SignInErrorKind::WrongIssuer, problem));
    }
    match (params.get("code"), params.get("error")) {
        (Some(code), _) => Ok(code),
        (None, error) => Err(SignInError::of_code(error.unwrap_or_default())),
    }
}
