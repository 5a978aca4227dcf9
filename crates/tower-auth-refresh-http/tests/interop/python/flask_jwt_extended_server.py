"""Flask-JWT-Extended, tokens in headers. JWTs survive a restart; the list of revoked ones doesn't.

    POST /login, /refresh, /logout         sign-in, refresh, sign-out; the latter two with the refresh token as bearer
    GET  /notes, /admin                    routes; /admin answers 403 to all but administrators
    GET  /fresh                            needs the token of a sign-in: any refreshed token is answered 401
    GET  /forbidden/notes, /forbidden/admin  the same as above, but an expired token is answered 403 too
"""

import uuid
from datetime import timedelta

import common
from flask import Flask, abort, jsonify, request
from flask_jwt_extended import (
    JWTManager,
    create_access_token,
    create_refresh_token,
    get_jti,
    get_jwt,
    get_jwt_identity,
    jwt_required,
)

ARGUMENTS = common.arguments()
PASSWORD = "correct horse"

app = Flask(__name__)
app.config["JWT_SECRET_KEY"] = "a key of the interop tests, known to all"
app.config["JWT_ACCESS_TOKEN_EXPIRES"] = timedelta(seconds=common.JWT_LIFETIME)
jwt = JWTManager(app)

BLOCKLIST = set()
# The ids of each user's refresh tokens.
ISSUED = {}


def new_refresh_token(user):
    token = create_refresh_token(user)
    ISSUED.setdefault(user, []).append(get_jti(token))
    return token


@jwt.token_in_blocklist_loader
def is_revoked(_header, payload):
    return payload["jti"] in BLOCKLIST


@jwt.expired_token_loader
def expired(_header, _payload):
    status = 403 if request.path.startswith("/forbidden/") else 401
    return jsonify(msg="Token has expired"), status


@app.post("/login")
def login():
    user = request.json["username"]
    if request.json["password"] != PASSWORD:
        return jsonify(msg="Bad username or password"), 401
    return jsonify(access_token=create_access_token(user, fresh=True), refresh_token=new_refresh_token(user))


@app.post("/refresh")
@jwt_required(refresh=True)
def refresh():
    user = get_jwt_identity()
    tokens = {"access_token": create_access_token(user, fresh=False)}
    if ARGUMENTS.rotation == "strict":
        BLOCKLIST.add(get_jwt()["jti"])
        tokens["refresh_token"] = new_refresh_token(user)
    return jsonify(tokens)


@app.post("/logout")
@jwt_required(refresh=True)
def logout():
    BLOCKLIST.add(get_jwt()["jti"])
    return jsonify(msg="Refresh token revoked")


@app.get("/notes")
@app.get("/forbidden/notes")
@jwt_required()
def notes():
    return jsonify(user=get_jwt_identity())


@app.get("/admin")
@app.get("/forbidden/admin")
@jwt_required()
def admin():
    abort(403)


@app.get("/fresh")
@jwt_required(fresh=True)
def fresh():
    return jsonify(user=get_jwt_identity())


def create_user():
    user = f"user-{uuid.uuid4().hex}"
    return {"owner": user, "username": user, "password": PASSWORD}


def revoke(owner):
    BLOCKLIST.update(ISSUED[owner])
    return {}


def presented(environ, _body):
    token = environ["HTTP_AUTHORIZATION"].removeprefix("Bearer ")
    return common.jwt_claim(token, "sub"), token


common.serve(
    ARGUMENTS.port,
    app,
    refresh_path="/refresh",
    presented=presented,
    routes={"/test/user": create_user, "/test/revoke": revoke},
)
