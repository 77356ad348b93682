"""A guarded application of FastAPI, for Uvicorn."""

import os
from typing import Annotated

import keyward.aio
from fastapi import Depends, FastAPI
from keyward.fastapi import RequireKey, install

client = keyward.aio.Client(os.environ["KEYWARD_SOCKET"], deadline=20)
require_key = RequireKey(client, scopes=["orders:read"])
app = FastAPI()
install(app)


@app.get("/")
async def owner(key: Annotated[keyward.Decision, Depends(require_key)]) -> str:
    return key.owner
