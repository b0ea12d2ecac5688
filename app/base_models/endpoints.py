"""GET /v1/models: what a job's `base_model` can name without the hub, in the shape of OpenAI's list."""

from typing import Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel

from app.base_models import catalog
from app.dependencies import SettingsDep
from app.error_handlers import refuse_with_400
from app.errors import NotFound
from app.jobs.spec import BUILT_IN_MODEL
from app.pagination import Page, make_page
from app.settings import Settings
from app.strictness import refuse_unknown_query

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(refuse_with_400), Depends(refuse_unknown_query)])


class Model(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int | None
    owned_by: Literal["tunesmith", "operator"]


def load_models(settings: Settings) -> list[Model]:
    folders = catalog.list_folders(settings.models_dir)
    offered = [Model(id=path.name, created=int(path.stat().st_mtime), owned_by="operator") for path in folders]
    return [Model(id=BUILT_IN_MODEL, created=None, owned_by="tunesmith"), *offered]


@router.get("")
def list_models(settings: SettingsDep) -> Page[Model]:
    """The built-in model and the operator's folders. Any other model of the hub can be named too."""
    return make_page(load_models(settings))


@router.get("/{model}")
def get_model(model: str, settings: SettingsDep) -> Model:
    for found in load_models(settings):
        if found.id == model:
            return found
    raise NotFound(f"There is no model {model!r} here. GET /v1/models lists them.", param="model", code="model_not_found")
