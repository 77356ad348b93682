"""A guarded project of Django, for Gunicorn and Uvicorn."""

import os

from django.conf import settings

settings.configure(
    ALLOWED_HOSTS=["*"],
    SECRET_KEY="test",
    ROOT_URLCONF=__name__,
    MIDDLEWARE=["keyward.django.KeywardMiddleware"],
    KEYWARD={"socket": os.environ["KEYWARD_SOCKET"], "deadline": 20, "scopes": ["orders:read"]},
)

from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse
from django.urls import path


def owner(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.keyward.owner)  # type: ignore[attr-defined]


urlpatterns = [path("", owner)]
app = get_wsgi_application()
asgi_app = get_asgi_application()
