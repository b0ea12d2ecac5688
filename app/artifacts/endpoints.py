"""/v1/jobs/{job_id}/artifacts: what a job made, the files themselves, and many of them as one."""

from fastapi import APIRouter, Request, Response

from app.artifacts import links, repository
from app.artifacts.archive import Archive
from app.artifacts.schemas import Artifact
from app.dependencies import BaseUrl, EngineDep, ReadSession, SettingsDep, StorageDep
from app.downloads import PARTS, UNCHANGED, send_archive, send_blob
from app.jobs import repository as jobs
from app.pagination import Page, make_page
from app.strictness import StrictRoute

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["artifacts"], route_class=StrictRoute)
link_router = APIRouter(prefix="/v1/links", tags=["artifacts"], route_class=StrictRoute)


@router.get("/artifacts")
def list_artifacts(job_id: str, session: ReadSession, base_url: BaseUrl) -> Page[Artifact]:
    """The whole list, one entry a file, by name. It grows while the job runs."""
    jobs.get(session, job_id)
    return make_page([Artifact.of(row, size, base_url) for row, size in repository.list_of(session, [job_id])])


@router.head("/artifacts.tar", include_in_schema=False)
@router.get("/artifacts.tar", response_class=Response, responses=UNCHANGED)
def download_artifacts(job_id: str, request: Request, session: ReadSession, storage: StorageDep, prefix: str = "") -> Response:
    """All artifacts, or those whose names begin with `prefix`, such as `merged/`, as one tar file of known length."""
    jobs.get(session, job_id)
    archive = Archive.of(repository.list_beginning(session, job_id, prefix))
    return send_archive(request, storage, archive, f"{prefix.strip('/').replace('/', '-') or job_id}.tar")


@router.head("/artifacts/{name:path}", include_in_schema=False)
@router.get("/artifacts/{name:path}", response_class=Response, responses=PARTS)
def download_artifact(job_id: str, name: str, request: Request, session: ReadSession, storage: StorageDep) -> Response:
    """The file. Takes Range; the ETag is its SHA-256."""
    jobs.get(session, job_id)
    artifact = repository.get(session, job_id, name)
    return send_blob(request, storage, artifact.blob_sha256, name.rsplit("/", 1)[-1])


@router.post("/artifacts/{name:path}/link", status_code=201)
def create_link(
    job_id: str,
    name: str,
    session: ReadSession,
    settings: SettingsDep,
    base_url: BaseUrl,
    wanted: links.WantedLink | None = None,
) -> links.Link:
    """A URL that opens this one file without a key, for an hour or as long as is asked: for browsers, wget and Ollama."""
    return links.make(session, settings, job_id, name, wanted or links.WantedLink(), base_url)


@link_router.head("/{token}/{job_id}/{name:path}", include_in_schema=False)
@link_router.get("/{token}/{job_id}/{name:path}", response_class=Response, responses=PARTS)
def open_link(
    token: str, job_id: str, name: str, request: Request, engine: EngineDep, settings: SettingsDep, storage: StorageDep
) -> Response:
    """The file of a link, as its own address answers it. 403 when the link's time is over. No key is asked for."""
    artifact = links.open_link(engine, settings, token, job_id, name)
    return send_blob(request, storage, artifact.blob_sha256, name.rsplit("/", 1)[-1])
