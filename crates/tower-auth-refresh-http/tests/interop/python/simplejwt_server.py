"""Django REST framework with SimpleJWT.

    POST /api/token/, /api/token/refresh/, /api/token/blacklist/   sign-in, refresh, sign-out
    GET  /api/notes/, /api/admin/        views; /api/admin/ needs a member of the staff
    GET  /session/notes/, /session/admin/  the same with session authentication first. Since that has no challenge,
                                         Django REST framework answers 403 to an expired token too
    POST /test/deactivate                {"owner"} → {}: deactivates a user
"""

from datetime import timedelta

import common
import django_common

ARGUMENTS = common.arguments()
ROTATION = {
    "strict": {"ROTATE_REFRESH_TOKENS": True, "BLACKLIST_AFTER_ROTATION": True},
    "rotating": {"ROTATE_REFRESH_TOKENS": True, "BLACKLIST_AFTER_ROTATION": False},
    "reusable": {"ROTATE_REFRESH_TOKENS": False},
}

APP = django_common.start(
    ARGUMENTS.database,
    ["rest_framework_simplejwt.token_blacklist"],
    "rest_framework_simplejwt.authentication.JWTAuthentication",
    SIMPLE_JWT={
        "ACCESS_TOKEN_LIFETIME": timedelta(seconds=common.JWT_LIFETIME),
        "REFRESH_TOKEN_LIFETIME": timedelta(hours=1),
        **ROTATION[ARGUMENTS.rotation],
    },
)

import json

from django.contrib.auth.models import User
from django.urls import path
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAdminUser
from rest_framework_simplejwt.authentication import JWTAuthentication
from rest_framework_simplejwt.token_blacklist.models import BlacklistedToken, OutstandingToken
from rest_framework_simplejwt.views import TokenBlacklistView, TokenObtainPairView, TokenRefreshView

Notes = django_common.notes()


class Admin(Notes):
    permission_classes = [IsAdminUser]


SESSION_FIRST = [SessionAuthentication, JWTAuthentication]

urlpatterns = [
    path("api/token/", TokenObtainPairView.as_view()),
    path("api/token/refresh/", TokenRefreshView.as_view()),
    path("api/token/blacklist/", TokenBlacklistView.as_view()),
    path("api/notes/", Notes.as_view()),
    path("api/admin/", Admin.as_view()),
    path("session/notes/", Notes.as_view(authentication_classes=SESSION_FIRST)),
    path("session/admin/", Admin.as_view(authentication_classes=SESSION_FIRST)),
]


def create_user():
    user, password = django_common.create_user()
    return {"owner": str(user.pk), "username": user.username, "password": password}


def revoke(owner):
    for token in OutstandingToken.objects.filter(user_id=owner):
        BlacklistedToken.objects.get_or_create(token=token)
    return {}


def deactivate(owner):
    User.objects.filter(pk=owner).update(is_active=False)
    return {}


def presented(environ, body):
    token = json.loads(body)["refresh"]
    return str(common.jwt_claim(token, "user_id")), token


common.serve(
    ARGUMENTS.port,
    APP,
    refresh_path="/api/token/refresh/",
    presented=presented,
    routes={"/test/user": create_user, "/test/revoke": revoke, "/test/deactivate": deactivate},
)
