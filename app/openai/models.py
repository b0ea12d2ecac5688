"""/v1/models in OpenAI's shape: what a job's `base_model` can name without the hub, and what jobs have made."""

from fastapi import APIRouter, BackgroundTasks
from sqlmodel import Session

from app.base_models import catalog
from app.dependencies import EngineDep, ReadSession, SettingsDep, StorageDep, WriteSession
from app.errors import Forbidden, NotFound
from app.jobs import repository, service
from app.jobs.spec import BUILT_IN_MODEL
from app.models import Job
from app.openai.presentation import name_model
from app.openai.schemas import DeletedModel, Model
from app.pagination import Page, make_page
from app.settings import Settings
from app.strictness import OpenAIRoute

BUILT_IN_SINCE = 1730332800
"""2024-10-31, when its makers published it."""

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=OpenAIRoute)


def load_base_models(settings: Settings) -> list[Model]:
    folders = catalog.list_folders(settings.models_dir)
    offered = [Model(id=path.name, created=int(path.stat().st_mtime), owned_by="operator") for path in folders]
    return [Model(id=BUILT_IN_MODEL, created=BUILT_IN_SINCE, owned_by="tunesmith"), *offered]


def show_fine_tuned(job: Job) -> Model:
    made = job.finished_at or job.created_at
    return Model(id=name_model(job), created=int(made.timestamp()), owned_by=job.tenant_id)


def find_fine_tuned(session: Session, model: str) -> Job | None:
    job = repository.find_with_model(session, model.rpartition(":")[2]) if model.startswith("ft:") else None
    return job if job and name_model(job) == model else None


def not_found(model: str) -> NotFound:
    return NotFound(f"There is no model {model!r} here. GET /v1/models lists them.", param="model", code="model_not_found")


@router.get("")
def list_models(session: ReadSession, settings: SettingsDep) -> Page[Model]:
    """The built-in model, the operator's folders, and the models of your jobs, newest first. A job can also start from any
    model of the hub."""
    made = [show_fine_tuned(job) for job in repository.jobs_with_models(session)]
    return make_page([*load_base_models(settings), *made])


@router.get("/{model:path}")
def get_model(model: str, session: ReadSession, settings: SettingsDep) -> Model:
    for found in load_base_models(settings):
        if found.id == model:
            return found
    job = find_fine_tuned(session, model)
    if job is None:
        raise not_found(model)
    return show_fine_tuned(job)


@router.delete("/{model:path}")
def delete_model(
    model: str,
    session: WriteSession,
    settings: SettingsDep,
    engine: EngineDep,
    storage: StorageDep,
    background: BackgroundTasks,
) -> DeletedModel:
    """Removes what the job made and keeps the job. 403 for a base model, 409 while another job starts from it."""
    if any(found.id == model for found in load_base_models(settings)):
        raise Forbidden(f"{model} is a base model. Only the models of jobs can be deleted.")
    job = find_fine_tuned(session, model)
    if job is None:
        raise not_found(model)
    hashes = service.delete_model(session, job.id)
    background.add_task(service.remove_content, engine, storage, job.id, hashes)
    return DeletedModel(id=model)
