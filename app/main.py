"""The HTTP server: `python -m app.main`, or `create_app` for whoever brings a server of their own."""

import logging
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

import app.artifacts.endpoints
import app.files.endpoints
import app.health.endpoints
import app.jobs.endpoints
import app.jobs.history_endpoints
import app.keys.endpoints
import app.openai.endpoints
import app.openai.models
import app.secrets.endpoints
import app.webhooks.endpoints
import app.workers.endpoints
from app import error_handlers, refusals
from app.body_limit import BodyLimit
from app.db import make_engine
from app.jobs.stream import Feeds
from app.keys.keyring import Keyring
from app.migration import migrate
from app.rate_limits import Limiter, RateLimits
from app.reaper import Reaper
from app.request_ids import RequestIds
from app.secrets import service as secrets
from app.security import Guard, is_loopback
from app.settings import Settings, read_flags
from app.storage import Storage
from app.webhooks import service as webhooks

MAX_BODY_BYTES = 1 << 20
MAX_UPLOAD_BYTES = 16 << 30
MOST_FILES = 65536
"""A connection is an open file, and shells and systemd allow 1024 unless they are asked for more."""

ROUTERS = (
    app.jobs.endpoints.router,
    app.jobs.history_endpoints.router,
    app.artifacts.endpoints.router,
    app.artifacts.endpoints.link_router,
    app.files.endpoints.router,
    app.files.endpoints.native_router,
    app.openai.endpoints.router,
    app.openai.models.router,
    app.secrets.endpoints.router,
    app.keys.endpoints.router,
    app.webhooks.endpoints.router,
    app.webhooks.endpoints.native_router,
    app.workers.endpoints.router,
    app.health.endpoints.router,
)
ROUTES = [route for router in ROUTERS for route in router.routes]
"""Handed over as they are: FastAPI would look twice for the route of a router that is included, at each request."""


class Service(FastAPI):
    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            refusals.announce(ROUTES)
            refusals.document(super().openapi(), ROUTES)
        return self.openapi_schema or {}


def create_app(settings: Settings) -> FastAPI:
    @asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncIterator[None]:
        engine = service.state.engine
        migrate(engine)
        secrets.renew(engine, service.state.settings)
        webhooks.renew(engine, service.state.settings)
        reaper = Reaper(engine, service.state.settings)
        reaper.start()
        yield
        reaper.stop()
        engine.dispose()

    service = Service(
        title="Tunesmith",
        version=version("tunesmith"),
        lifespan=lifespan,
        routes=ROUTES,
    )
    attach(service, settings)
    service.add_middleware(BodyLimit, default=MAX_BODY_BYTES, by_path={"/v1/files": MAX_UPLOAD_BYTES})
    service.add_middleware(RateLimits)
    service.add_middleware(Guard)
    if settings.cors_origins:
        origins, everything = settings.cors_origins, ("*",)
        service.add_middleware(
            CORSMiddleware, allow_origins=origins, allow_methods=everything, allow_headers=everything, expose_headers=everything
        )
    service.add_middleware(RequestIds)
    error_handlers.install(service)
    return service


def attach(service: FastAPI, settings: Settings) -> None:
    """Gives the service its settings, and the database and storage that they name."""
    service.state.settings = settings
    service.state.engine = make_engine(settings.database)
    service.state.storage = Storage(settings.root)
    service.state.feeds = Feeds(service.state.engine)
    service.state.keyring = Keyring(service.state.engine, settings.bootstrap_key)
    service.state.limiter = Limiter(settings)


def main() -> None:
    settings = read_flags("tunesmith api")
    if not is_loopback(settings.host) and not has_key(settings):
        sys.exit(
            f"Without a key the server listens on loopback only, not on {settings.host}. `tunesmith keys create --local` makes "
            "one, which clients then send as a bearer token; or set TUNESMITH_BOOTSTRAP_KEY, or TUNESMITH_HOST=127.0.0.1."
        )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("app").setLevel(logging.INFO)
    allow_files()
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        timeout_graceful_shutdown=5,
        server_header=False,
        access_log=False,  # `app.request_ids` writes one
    )


def allow_files() -> None:
    """As many open files as this process may give itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def has_key(settings: Settings) -> bool:
    engine = make_engine(settings.database)
    migrate(engine)
    keyring = Keyring(engine, settings.bootstrap_key)
    keyring.refresh()
    engine.dispose()
    return not keyring.is_empty


if __name__ == "__main__":
    main()
