"""Whether the process answers, and whether what it needs does."""

from typing import Any

from fastapi import APIRouter, Response

from app.dependencies import EngineDep, SettingsDep, StorageDep
from app.error_handlers import ErrorAnswer
from app.errors import Unavailable
from app.health import service

router = APIRouter(tags=["service"])


@router.get("/healthz")
async def get_health() -> dict[str, str]:
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": ErrorAnswer, "description": "Something is down; `checks` says what."}})
def get_readiness(engine: EngineDep, settings: SettingsDep, storage: StorageDep, response: Response) -> dict[str, Any]:
    """Database, broker, storage and workers, each `up` or `down` with the reason."""
    checks = service.check_all(engine, settings, storage)
    down = [name for name, check in checks.items() if check["status"] == "down"]
    if not down:
        return {"status": "ready", "checks": checks}
    response.status_code = Unavailable.status
    return {"status": "unavailable", "checks": checks} | Unavailable(f"Not ready: {', '.join(down)}.").to_json()
