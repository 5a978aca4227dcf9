//! [`DeviceSignIn`]: the device authorization grant.

use std::fmt;
use std::time::Duration;

use oauth2::{DeviceAuthorizationResponse, EmptyExtraDeviceAuthorizationFields};
use serde_json::{Map, Value};
use tokio::time::{Instant, sleep};

use super::SignedIn;
use super::error::SignInError;
use super::request::{Keys, SignInRequest};
use super::setters::setters;
use crate::client::AuthClient;
use crate::error::AuthServerError;
use crate::oauth::{AuthorizationServer, ClientAuth};

/// Parameters of the device authorization request that the sign-in sets itself.
const RESERVED: [&str; 2] = ["client_id", "scope"];

/// The longest interval between two polls, and the longest pause after a failed one.
const LONGEST_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// The longest life of a device code.
const LONGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// `slow_down` adds this to the interval (RFC 8628 §3.5).
const SLOW_DOWN: Duration = Duration::from_secs(5);

/// A sign-in on another device: the device authorization grant (RFC 8628), where there is no browser.
///
/// The user opens an address on any device and enters a code there, while this device polls the server:
///
/// - at the server's interval, the first time after one interval; 5 s slower after each `slow_down`;
/// - after a call that failed without a verdict (no connection, a time-out, a 5xx, a 429), after twice the pause before
///   it, up to 5 minutes, and no earlier than the server asks for;
/// - until the code expires.
///
/// # Examples
///
/// ```no_run
/// # async fn example(session: tower_auth_refresh::Session) -> Result<(), tower::BoxError> {
/// # let http: tower_auth_refresh_http::AuthClient = unimplemented!();
/// use tower_auth_refresh_http::{AuthorizationServer, ClientAuth, DeviceSignIn};
///
/// let server = AuthorizationServer::discover(&http, "https://auth.example.com").await?;
/// let sign_in = DeviceSignIn::new(http, &server, ClientAuth::public("my-cli"))?.scope("notes offline_access");
///
/// let pending = sign_in.begin().await?;
/// println!("Open {} on any device, and enter {}.", pending.verification_uri(), pending.user_code());
/// let signed_in = pending.finish().await?;
/// session.sign_in(signed_in.tokens).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct DeviceSignIn {
    request: SignInRequest,
}

impl DeviceSignIn {
    /// Creates a sign-in at this server, for this client.
    ///
    /// # Errors
    ///
    /// [`SignInErrorKind::Misconfigured`](super::SignInErrorKind::Misconfigured) if the server has no device
    /// authorization endpoint, if no secret may be sent to one of its endpoints, or if the client has no id.
    pub fn new(client: AuthClient, server: &AuthorizationServer, auth: ClientAuth) -> Result<Self, SignInError> {
        let request = SignInRequest::new(client, server, auth)?;
        let endpoint = server
            .device_authorization_endpoint()
            .ok_or_else(|| SignInError::misconfigured("the server has no device authorization endpoint"))?;
        request.call(endpoint)?;
        request.token_call()?;
        Ok(Self { request })
    }

    setters!();

    /// Requests a code from the server; for `openid`, its keys first.
    ///
    /// # Errors
    ///
    /// - [`SignInErrorKind::Server`](super::SignInErrorKind::Server) if a call fails.
    /// - [`SignInErrorKind::Misconfigured`](super::SignInErrorKind::Misconfigured) if a [`param`](Self::param) is one
    ///   that the sign-in sets itself, or if `openid` is requested without the crate feature `oidc` or of a server
    ///   without a `jwks_uri` for secrets.
    ///
    /// # Panics
    ///
    /// If it is polled outside a `tokio` runtime whose timers are enabled.
    pub async fn begin(&self) -> Result<PendingDeviceSignIn, SignInError> {
        let issuer = self.request.check(&RESERVED)?;
        let keys = self.request.keys(issuer).await?;
        let endpoint = self.request.server.device_authorization_endpoint().unwrap_or_default();
        let mut call = self.request.call(endpoint)?;
        for (name, value) in self.request.params.iter() {
            call.param(name, value);
        }
        let scope = self.request.scope.as_deref().map(|scope| ("scope", scope));
        let sent = call.post(scope.as_slice());
        let asked = Instant::now();
        let response = async { read(self.request.members(sent.await?)?, &self.request.client) }.await;
        let response = response.map_err(|error| error.of_repeatable_call().at(&call.endpoint))?;
        let expires = asked + response.expires_in().min(LONGEST_LIFETIME);
        Ok(PendingDeviceSignIn { request: self.request.clone(), response, expires, keys })
    }
}

/// A sign-in that waits for the user's approval on another device.
///
/// `Debug` shows no code.
#[must_use = "the server isn't polled until the sign-in is finished"]
pub struct PendingDeviceSignIn {
    request: SignInRequest,
    response: Response,
    expires: Instant,
    keys: Option<Keys>,
}

type Response = DeviceAuthorizationResponse<EmptyExtraDeviceAuthorizationFields>;

impl PendingDeviceSignIn {
    /// The code that the user enters.
    #[must_use]
    pub fn user_code(&self) -> &str {
        self.response.user_code().secret()
    }

    /// The address that the user opens.
    #[must_use]
    pub fn verification_uri(&self) -> &str {
        self.response.verification_uri()
    }

    /// The address with the code in it, for a QR code or a link, if the server gives one.
    #[must_use]
    pub fn verification_uri_complete(&self) -> Option<&str> {
        self.response.verification_uri_complete().map(|uri| uri.secret().as_str())
    }

    /// The time until the code expires.
    #[must_use]
    pub fn expires_in(&self) -> Duration {
        self.expires.saturating_duration_since(Instant::now())
    }

    /// Polls the server until the user has decided.
    ///
    /// # Errors
    ///
    /// - [`SignInErrorKind::TimedOut`](super::SignInErrorKind::TimedOut) if the code expires first. If the last poll had
    ///   no verdict, its failure is the source.
    /// - [`SignInErrorKind::Denied`](super::SignInErrorKind::Denied) if the user says no.
    /// - [`SignInErrorKind::Server`](super::SignInErrorKind::Server) if the server refuses the call for another reason,
    ///   its answer is of no use, or the client's signature fails for good.
    /// - [`SignInErrorKind::InvalidIdToken`](super::SignInErrorKind::InvalidIdToken) if the ID token isn't valid. The
    ///   tokens are revoked, as [`PendingBrowserSignIn::finish`](super::PendingBrowserSignIn::finish) does.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the sign-in. If a call was under way, the server may have issued tokens, which are lost.
    pub async fn finish(self) -> Result<SignedIn, SignInError> {
        let Self { request, response, expires, keys } = self;
        let call = request.token_call()?;
        let mut interval = response.interval().clamp(Duration::from_secs(1), LONGEST_INTERVAL);
        let mut pause = interval;
        let mut trouble = None;
        loop {
            // A poll after the expiry can't succeed.
            if expires.saturating_duration_since(Instant::now()) < pause {
                tokio::time::sleep_until(expires).await;
                let timed_out = SignInError::timed_out();
                return Err(match trouble {
                    Some(error) => timed_out.with_source(error),
                    None => timed_out,
                });
            }
            sleep(pause).await;
            let sent = call.post(&[
                ("grant_type", "urn:ietf:params:oauth:grant-type:device_code"),
                ("device_code", response.device_code().secret()),
            ]);
            let polled = async { request.granted(sent.await?) }.await;
            let error = match polled {
                Ok(granted) => return request.signed_in(granted, None, keys.as_ref()).await,
                Err(error) => error,
            };
            pause = match error.code() {
                Some("authorization_pending") => interval,
                Some("slow_down") => {
                    interval = (interval + SLOW_DOWN).min(LONGEST_INTERVAL);
                    interval
                }
                Some(code @ ("access_denied" | "expired_token")) => return Err(SignInError::of_code(code)),
                _ if error.is_unavailable() || error.is_in_doubt() => (pause * 2).min(LONGEST_INTERVAL),
                _ => return Err(error.at(&call.endpoint).into()),
            };
            pause = pause.max(error.retry_after().unwrap_or_default()).min(LONGEST_LIFETIME);
            let is_trouble = error.is_unavailable() || error.is_in_doubt();
            trouble = is_trouble.then(|| error.at(&call.endpoint));
        }
    }
}

impl fmt::Debug for PendingDeviceSignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingDeviceSignIn").field("expires_in", &self.expires_in()).finish_non_exhaustive()
    }
}

/// Reads the codes of a device authorization response.
fn read(members: Map<String, Value>, client: &AuthClient) -> Result<Response, AuthServerError> {
    // The message of the source may repeat a code: it is left out.
    let response: Response = serde_json::from_value(Value::Object(members))
        .map_err(|_| AuthServerError::misconfigured("the answer is no device authorization response"))?;
    let complete = response.verification_uri_complete().map(|uri| uri.secret().as_str());
    // The app opens them, or shows them as links.
    for uri in [Some(response.verification_uri().as_str()), complete].into_iter().flatten() {
        // A page of a web app may be named by a fragment.
        let (page, _) = uri.split_once('#').unwrap_or((uri, ""));
        client.endpoint(page).map_err(|invalid| {
            AuthServerError::misconfigured("the verification URI is no URL for secrets").with_source(invalid)
        })?;
    }
    Ok(response)
}
