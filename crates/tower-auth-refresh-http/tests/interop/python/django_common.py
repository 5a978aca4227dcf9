"""The settings that the two Django servers share, and their database."""

import uuid

import django
import django.db
from django.conf import settings
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application


def start(database, apps, authentication, **further):
    """Configures Django and creates the tables, unless an earlier process of the same test has created them.

    `authentication`: the class by which the views of Django REST framework authenticate.
    """
    apps = ["django.contrib.auth", "django.contrib.contenttypes", "rest_framework", *apps]
    settings.configure(
        ALLOWED_HOSTS=["127.0.0.1"],
        SECRET_KEY="a key of the interop tests, known to all",
        ROOT_URLCONF="__main__",
        INSTALLED_APPS=apps,
        USE_TZ=True,
        # The tests sign in many users: the slow hash that protects real passwords would only take time.
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": database,
                "OPTIONS": {
                    "timeout": 20,
                    "transaction_mode": "IMMEDIATE",
                    "init_command": "PRAGMA synchronous=OFF",
                },
            }
        },
        # The tables are created from the models at once, not by one migration after another.
        MIGRATION_MODULES={name.split(".")[-1]: None for name in apps},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        LOGGING_CONFIG=None,
        REST_FRAMEWORK={
            "DEFAULT_AUTHENTICATION_CLASSES": [authentication],
            "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
        },
        **further,
    )
    django.setup()
    with django.db.connection.cursor() as cursor:
        # Readers don't wait for a writer. The file keeps this setting.
        cursor.execute("PRAGMA journal_mode=WAL")
    call_command("migrate", run_syncdb=True, verbosity=0)
    return get_wsgi_application()


def notes():
    """Returns a view of Django REST framework that any user may see. The import needs the settings."""
    from rest_framework.permissions import IsAuthenticated
    from rest_framework.response import Response
    from rest_framework.views import APIView

    class Notes(APIView):
        permission_classes = [IsAuthenticated]

        def get(self, request):
            return Response({"user": request.user.username})

    return Notes


def create_user():
    from django.contrib.auth.models import User

    password = "correct horse"
    return User.objects.create_user(f"user-{uuid.uuid4().hex}", password=password), password
