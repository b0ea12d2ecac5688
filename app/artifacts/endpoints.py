"""/v1/jobs/{job_id}/artifacts: what a job made, and the files themselves."""

from fastapi import APIRouter, Depends, Request, Response

from app.artifacts import repository
from app.artifacts.schemas import Artifact
from app.dependencies import BaseUrl, ReadSession, StorageDep
from app.downloads import send_blob
from app.jobs import repository as jobs
from app.pagination import Page, make_page
from app.strictness import refuse_unknown_query

router = APIRouter(prefix="/v1/jobs/{job_id}/artifacts", tags=["artifacts"], dependencies=[Depends(refuse_unknown_query)])


@router.get("")
def list_artifacts(job_id: str, session: ReadSession, base_url: BaseUrl) -> Page[Artifact]:
    """The whole list, one entry a file, by name. It grows while the job runs."""
    jobs.get(session, job_id)
    return make_page([Artifact.of(row, size, base_url) for row, size in repository.list_of(session, [job_id])])


@router.head("/{name:path}", include_in_schema=False)
@router.get("/{name:path}", response_class=Response)
def download_artifact(job_id: str, name: str, request: Request, session: ReadSession, storage: StorageDep) -> Response:
    """The file. Takes Range; the ETag is its SHA-256."""
    jobs.get(session, job_id)
    artifact = repository.get(session, job_id, name)
    return send_blob(request, storage, artifact.blob_sha256, name.rsplit("/", 1)[-1])
