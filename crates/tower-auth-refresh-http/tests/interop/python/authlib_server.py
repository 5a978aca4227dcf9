"""Authlib in Flask. Tokens are kept in memory: a restart forgets them. Clients are configured, and stay.

    POST /oauth/token, /oauth/revoke     the authorization server
    GET  /api/notes, /api/admin          resources; /api/admin needs the scope `write`
    GET  /forbidden/notes, /forbidden/admin  the same behind a resource protector that answers 403 to every error
"""

import os
import time
import uuid

import common

# Authlib refuses plain HTTP otherwise; this is loopback.
os.environ["AUTHLIB_INSECURE_TRANSPORT"] = "1"

from authlib.integrations.flask_oauth2 import AuthorizationServer, ResourceProtector, current_token
from authlib.oauth2.rfc6749 import ClientMixin, TokenMixin, grants
from authlib.oauth2.rfc6750 import BearerTokenValidator
from authlib.oauth2.rfc7009 import RevocationEndpoint
from flask import Flask, jsonify
from werkzeug.exceptions import Forbidden

ARGUMENTS = common.arguments()
PASSWORD = "correct horse"

TOKENS = []


class Client(ClientMixin):
    """A client of the configuration: it belongs to the user of the same name."""

    def __init__(self, client_id):
        self.client_id = client_id
        self.client_secret = f"s3cret& {client_id} %"

    def get_client_id(self):
        return self.client_id

    def get_allowed_scope(self, scope):
        return scope if scope == "read" else ""

    def check_client_secret(self, client_secret):
        return client_secret == self.client_secret

    def check_endpoint_auth_method(self, method, endpoint):
        return method == "client_secret_basic"

    def check_grant_type(self, grant_type):
        return grant_type in ("password", "refresh_token")


class Token(TokenMixin):
    def __init__(self, client_id, access_token, refresh_token, scope, expires_in, **_):
        self.client_id = client_id
        self.access_token = access_token
        self.refresh_token = refresh_token
        self.scope = scope
        self.expires_in = expires_in
        self.issued_at = time.time()
        self.access_revoked = False
        # The time at which the refresh token was revoked, or replaced by another.
        self.revoked_at = None
        self.replaced_at = None

    def check_client(self, client):
        return client.client_id == self.client_id

    def get_scope(self):
        return self.scope

    def get_expires_in(self):
        return self.expires_in

    def is_expired(self):
        return time.time() >= self.issued_at + self.expires_in

    def is_revoked(self):
        return self.access_revoked

    def get_client(self):
        return Client(self.client_id)

    def get_user(self):
        return self.client_id

    def revoke(self):
        self.access_revoked = True
        self.revoked_at = time.time()

    def is_refreshable(self):
        if self.revoked_at is not None:
            return False
        grace_period = common.GRACE_PERIOD if ARGUMENTS.rotation == "grace" else 0
        return self.replaced_at is None or time.time() < self.replaced_at + grace_period


def find(**member):
    [(name, value)] = member.items()
    return next((token for token in TOKENS if getattr(token, name) == value), None)


def save_token(token, request):
    # A server that doesn't rotate issues an access token alone: the refresh token stays in force.
    presented = getattr(request, "refresh_token", None)
    token = {"refresh_token": None, **token}
    if token["refresh_token"] is None and presented:
        token["refresh_token"] = presented.refresh_token
        TOKENS.remove(presented)
    TOKENS.append(Token(request.client.client_id, **token))


class PasswordGrant(grants.ResourceOwnerPasswordCredentialsGrant):
    def authenticate_user(self, username, password):
        return username if password == PASSWORD else None


class RefreshTokenGrant(grants.RefreshTokenGrant):
    INCLUDE_NEW_REFRESH_TOKEN = ARGUMENTS.rotation != "reusable"

    def authenticate_refresh_token(self, refresh_token):
        token = find(refresh_token=refresh_token)
        return token if token and token.is_refreshable() else None

    def authenticate_user(self, refresh_token):
        return refresh_token.get_user()

    def revoke_old_credential(self, refresh_token):
        if self.INCLUDE_NEW_REFRESH_TOKEN:
            refresh_token.replaced_at = refresh_token.replaced_at or time.time()


class Revocation(RevocationEndpoint):
    def query_token(self, token_string, token_type_hint):
        return find(**{token_type_hint: token_string})

    def revoke_token(self, token, request):
        token.revoke()


class Validator(BearerTokenValidator):
    def authenticate_token(self, token_string):
        return find(access_token=token_string)


class ForbiddingProtector(ResourceProtector):
    def raise_error_response(self, error):
        raise Forbidden()


app = Flask(__name__)
app.config["OAUTH2_REFRESH_TOKEN_GENERATOR"] = True
app.config["OAUTH2_TOKEN_EXPIRES_IN"] = {"password": common.LIFETIME, "refresh_token": common.LIFETIME}
server = AuthorizationServer(app, query_client=Client, save_token=save_token)
server.register_grant(PasswordGrant)
server.register_grant(RefreshTokenGrant)
server.register_endpoint(Revocation)

require_oauth = ResourceProtector()
require_oauth.register_token_validator(Validator())
require_or_forbid = ForbiddingProtector()
require_or_forbid.register_token_validator(Validator())


@app.post("/oauth/token")
def token():
    return server.create_token_response()


@app.post("/oauth/revoke")
def revoke_token():
    return server.create_endpoint_response(Revocation.ENDPOINT_NAME)


@app.get("/api/notes")
@require_oauth("read")
def notes():
    return jsonify(user=current_token.get_user())


@app.get("/api/admin")
@require_oauth("write")
def admin():
    return jsonify(user=current_token.get_user())


@app.get("/forbidden/notes")
@require_or_forbid("read")
def forbidden_notes():
    return jsonify(user=current_token.get_user())


@app.get("/forbidden/admin")
@require_or_forbid("write")
def forbidden_admin():
    return jsonify(user=current_token.get_user())


def create_user():
    client = Client(f"app-{uuid.uuid4().hex}")
    return {
        "owner": client.client_id,
        "client_id": client.client_id,
        "client_secret": client.client_secret,
        "username": client.client_id,
        "password": PASSWORD,
    }


def revoke(owner):
    for token in TOKENS:
        if token.client_id == owner:
            token.revoke()
    return {}


common.serve_oauth(ARGUMENTS.port, app, "/oauth/token", create_user, revoke)
