"""What endpoints ask for. A writing request commits once, after its endpoint and before its answer is sent.

Sessions see what belongs to the caller's tenant: see `app.tenancy`. What only looks something up is `async`, because FastAPI
calls anything else in a thread, which costs more than the look.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from typing import Annotated

from fastapi import Depends, Header, Request
from sqlalchemy import Engine
from sqlmodel import Session

from app.db import read_session, write_session
from app.idempotency import Once
from app.keys.keyring import Keyring
from app.keys.scopes import Principal
from app.looks import Look, look
from app.settings import Settings
from app.storage import Storage

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern="^[!-~]+$",
        description="A name for this request: sent again with the same body within a day, it makes nothing new.",
    ),
]


async def get_engine(request: Request) -> Engine:
    return request.app.state.engine


async def get_settings(request: Request) -> Settings:
    return request.app.state.settings


async def get_storage(request: Request) -> Storage:
    return request.app.state.storage


def base_url_of(request: Request) -> str:
    """What absolute URLs begin with, without a slash at the end."""
    return (request.app.state.settings.public_url or str(request.base_url)).rstrip("/")


async def get_base_url(request: Request) -> str:
    return base_url_of(request)


def looking(request: Request) -> AbstractContextManager[Look | Session]:
    """For what is polled: no dependency to solve, opened and closed in the endpoint's own thread."""
    return look(request.app.state.engine, request.state.principal.tenant_id)


def get_once(request: Request, key: IdempotencyKey = None) -> Once:
    state = request.app.state
    return Once(state.engine, request.state.principal.tenant_id, f"{request.method} {request.url.path}", key)


async def get_keyring(request: Request) -> Keyring:
    return request.app.state.keyring


async def get_principal(request: Request) -> Principal:
    return request.state.principal


async def open_read_session(request: Request) -> AsyncIterator[Session]:
    with read_session(request.app.state.engine, request.state.principal.tenant_id) as session:
        yield session


def open_write_session(request: Request) -> Iterator[Session]:
    with write_session(request.app.state.engine, request.state.principal.tenant_id, request.state.request_id) as session:
        yield session


EngineDep = Annotated[Engine, Depends(get_engine)]
SettingsDep = Annotated[Settings, Depends(get_settings)]
StorageDep = Annotated[Storage, Depends(get_storage)]
BaseUrl = Annotated[str, Depends(get_base_url)]
KeyringDep = Annotated[Keyring, Depends(get_keyring)]
OnceDep = Annotated[Once, Depends(get_once)]
Caller = Annotated[Principal, Depends(get_principal)]
ReadSession = Annotated[Session, Depends(open_read_session, scope="function")]
WriteSession = Annotated[Session, Depends(open_write_session, scope="function")]
"""`scope="function"` closes a session, and so commits, when the endpoint returns. By default that is after the answer: a client
could read before the commit, and a download or a stream would hold its transaction to the end."""
