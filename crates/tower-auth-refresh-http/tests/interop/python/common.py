"""The parts that the servers of this folder share: arguments, the counts of refresh calls, and the HTTP server.

Each server listens on loopback only, prints one line of JSON, {"port": …}, once it listens, and ends when its standard
input does. Beside the framework's own routes it answers:

    POST /test/user    {} → {"owner", "username", "password", …}: creates a user, and where the framework has clients,
                       a client
    POST /test/revoke  {"owner"} → {}: revokes all grants of that user
    GET  /test/events  ?owner=… → {"presented", "granted", "refused", "repeated"}: the refresh calls of that user;
                       `repeated` counts the calls with a refresh token that an earlier call had presented
"""

import argparse
import base64
import io
import json
import os
import sys
import threading
from urllib.parse import parse_qs, unquote_plus

from werkzeug.serving import WSGIRequestHandler, make_server

# The lifetime of access tokens, in seconds.
LIFETIME = 2
# The `exp` of a JWT is in whole seconds, rounded down: with this, JWTs live for two to three seconds.
JWT_LIFETIME = LIFETIME + 1
# How long a server with a grace period accepts a refresh token that it has replaced, in seconds.
GRACE_PERIOD = 10


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--rotation", choices=["strict", "grace", "reusable", "rotating"], required=True)
    parser.add_argument("--database", help="the path of the SQLite database, of the servers that have one")
    return parser.parse_args()


def basic_client_id(environ):
    """Returns the client id of the `Authorization: Basic …` of a request (RFC 6749 §2.3.1)."""
    credentials = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Basic ")
    return unquote_plus(base64.b64decode(credentials).decode().split(":")[0])


def form_refresh_token(body):
    """Returns the refresh token of a refresh token grant; None for other grants."""
    form = parse_qs(body.decode())
    return form["refresh_token"][0] if form.get("grant_type") == ["refresh_token"] else None


def jwt_claim(token, name):
    """Returns a claim of a JWT, which isn't verified."""
    claims = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))[name]


class Events:
    """A WSGI middleware that counts refresh calls by owner, and answers the routes under /test."""

    def __init__(self, app, refresh_path, presented, routes):
        self.app = app
        self.refresh_path = refresh_path
        # Takes the WSGI environment and the body of a call; returns its owner and refresh token.
        self.presented = presented
        self.routes = routes
        self.lock = threading.Lock()
        self.seen = set()
        self.counts = {}

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path == "/test/events":
            owner = parse_qs(environ["QUERY_STRING"])["owner"][0]
            with self.lock:
                return answer(start_response, dict(self.counts_of(owner)))
        if path in self.routes:
            return answer(start_response, self.routes[path](**json.loads(read_body(environ) or b"{}")))
        if path == self.refresh_path:
            return self.refresh(environ, start_response)
        return self.app(environ, start_response)

    def refresh(self, environ, start_response):
        owner, token = self.presented(environ, read_body(environ))
        if token is None:
            return self.app(environ, start_response)
        with self.lock:
            counts = self.counts_of(owner)
            counts["presented"] += 1
            counts["repeated"] += token in self.seen
            self.seen.add(token)

        def count(status, headers, exc_info=None):
            with self.lock:
                counts["granted" if status.startswith("2") else "refused"] += 1
            return start_response(status, headers, exc_info)

        return self.app(environ, count)

    def counts_of(self, owner):
        return self.counts.setdefault(owner, {"presented": 0, "granted": 0, "refused": 0, "repeated": 0})


def read_body(environ):
    """Reads the body of a request, and leaves it in the environment for the app."""
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return body


def answer(start_response, value):
    body = json.dumps(value).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


class QuietHandler(WSGIRequestHandler):
    def log_request(self, *args):
        pass


def serve(port, app, **events):
    server = make_server("127.0.0.1", port, Events(app, **events), threaded=True, request_handler=QuietHandler)

    def end_with_standard_input():
        sys.stdin.read()
        os._exit(0)

    threading.Thread(target=end_with_standard_input, daemon=True).start()
    print(json.dumps({"port": server.server_port}), flush=True)
    server.serve_forever()


def serve_oauth(port, app, token_path, create_user, revoke):
    """Serves an OAuth 2.0 server, whose clients authenticate by HTTP Basic: a client is the owner of its tokens."""
    serve(
        port,
        app,
        refresh_path=token_path,
        presented=lambda environ, body: (basic_client_id(environ), form_refresh_token(body)),
        routes={"/test/user": create_user, "/test/revoke": revoke},
    )
