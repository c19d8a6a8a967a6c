import os
import sys

from django.conf import settings
from django.core.management import execute_from_command_line
from django.db import connection
from django.http import HttpResponse
from django.urls import path

names = {"HOST": "PGHOST", "USER": "PGUSER", "NAME": "PGDATABASE"}
database = {key: os.environ[name] for key, name in names.items()}
settings.configure(
    DEBUG=True,
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="x",
    DATABASES={"default": {"ENGINE": "django.db.backends.postgresql", **database}},
)


def index(request):
    with connection.cursor() as cursor:
        cursor.execute("SELECT 'hel' || 'lo'")
        return HttpResponse(cursor.fetchone()[0])


urlpatterns = [path("", index)]
execute_from_command_line(sys.argv)
