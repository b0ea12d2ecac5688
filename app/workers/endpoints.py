"""GET /v1/workers and GET /v1/queue."""

from fastapi import APIRouter

from app.dependencies import Caller, ReadSession, SettingsDep
from app.jobs.states import Resource, StageStatus
from app.keys.scopes import Principal
from app.models import StageRun
from app.models import Worker as WorkerRow
from app.pagination import Page, make_page
from app.strictness import StrictRoute
from app.workers import repository
from app.workers.schemas import CurrentStage, Queue, Worker

router = APIRouter(prefix="/v1", tags=["workers"], route_class=StrictRoute)


def show_worker(row: WorkerRow, run: StageRun | None, caller: Principal, *, alive: bool) -> Worker:
    """Whose job or file it is that a stage works on, only its tenant and the operator are told."""
    told = run is not None and (caller.is_operator or run.tenant_id == caller.tenant_id)
    stage = run and CurrentStage(
        name=run.stage,
        attempt=run.attempt,
        job_id=run.job_id if told else None,
        file_id=run.file_id if told else None,
        started_at=run.started_at,
    )
    return Worker(**row.model_dump(exclude={"stage_run_id"}), alive=alive, stage=stage)


@router.get("/workers")
def list_workers(session: ReadSession, settings: SettingsDep, caller: Caller) -> Page[Worker]:
    """Those of the whole service. What a stage of another tenant works on is left null."""
    since = repository.alive_since(settings.lease_seconds)
    rows = repository.page(session)
    return make_page([show_worker(row, run, caller, alive=row.heartbeat_at >= since) for row, run in rows])


@router.get("/queue")
def list_queues(session: ReadSession, settings: SettingsDep) -> Page[Queue]:
    """For each resource what waits, of all tenants, what runs, and how many workers there are."""
    counts = repository.count_runs(session)
    queues = [queue for worker in repository.list_alive(session, settings.lease_seconds) for queue in worker.queues]
    return make_page(
        [
            Queue(
                resource=resource,
                queued=counts.get((resource, StageStatus.QUEUED), (0, None))[0],
                running=counts.get((resource, StageStatus.RUNNING), (0, None))[0],
                workers=queues.count(resource),
                oldest_created_at=counts.get((resource, StageStatus.QUEUED), (0, None))[1],
            )
            for resource in Resource
        ]
    )
