"""django-oauth-toolkit, with an API on Django REST framework and one on its own decorator.

    POST /o/token/, /o/revoke_token/   the authorization server
    GET  /api/notes/, /api/admin/      views of Django REST framework; /api/admin/ needs the scope `write`
    GET  /plain/notes/, /plain/admin/  views behind `protected_resource`, which answers 403 without a body to an
                                       expired token and to a missing scope alike
"""

import common
import django_common

ARGUMENTS = common.arguments()
ROTATION = {
    "strict": {"REFRESH_TOKEN_REUSE_PROTECTION": True},
    "grace": {"REFRESH_TOKEN_GRACE_PERIOD_SECONDS": common.GRACE_PERIOD, "REFRESH_TOKEN_REUSE_PROTECTION": True},
    "reusable": {"ROTATE_REFRESH_TOKEN": False},
}

APP = django_common.start(
    ARGUMENTS.database,
    ["oauth2_provider"],
    "oauth2_provider.contrib.rest_framework.OAuth2Authentication",
    OAUTH2_PROVIDER={"ACCESS_TOKEN_EXPIRE_SECONDS": common.LIFETIME, **ROTATION[ARGUMENTS.rotation]},
)

from django.http import JsonResponse
from django.urls import include, path
from oauth2_provider.contrib.rest_framework import TokenHasScope
from oauth2_provider.decorators import protected_resource
from oauth2_provider.models import Application, RefreshToken

Notes = django_common.notes()


class Admin(Notes):
    permission_classes = [TokenHasScope]
    required_scopes = ["write"]


@protected_resource()
def plain_notes(request):
    return JsonResponse({"user": request.resource_owner.username})


@protected_resource(scopes=["write"])
def plain_admin(request):
    return JsonResponse({"user": request.resource_owner.username})


urlpatterns = [
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
    path("api/notes/", Notes.as_view()),
    path("api/admin/", Admin.as_view()),
    path("plain/notes/", plain_notes),
    path("plain/admin/", plain_admin),
]


def create_user():
    user, password = django_common.create_user()
    secret = f"s3cret& {user.pk} %"
    application = Application.objects.create(
        user=user,
        client_type=Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=Application.GRANT_PASSWORD,
        client_secret=secret,
    )
    return {
        "owner": application.client_id,
        "client_id": application.client_id,
        "client_secret": secret,
        "username": user.username,
        "password": password,
    }


def revoke(owner):
    for token in RefreshToken.objects.filter(application__client_id=owner, revoked__isnull=True):
        token.revoke()
    return {}


common.serve_oauth(ARGUMENTS.port, APP, "/o/token/", create_user, revoke)
