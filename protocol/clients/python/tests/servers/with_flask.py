"""A guarded application of Flask, for Gunicorn."""

import os

import keyward
from flask import Flask, request
from keyward.wsgi import KeywardMiddleware

app = Flask(__name__)
client = keyward.Client(os.environ["KEYWARD_SOCKET"], deadline=20)
app.wsgi_app = KeywardMiddleware(app.wsgi_app, client, scopes=["orders:read"])  # type: ignore[method-assign]


@app.get("/")
def owner() -> str:
    return request.environ["keyward.decision"].owner
