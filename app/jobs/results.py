"""A job's metrics as a file that its user can list and download, as OpenAI makes one."""

import csv
import io

from sqlmodel import Session

from app import blobs
from app.jobs import metrics, repository
from app.models import File, Job
from app.storage import Storage

PURPOSE = "fine-tune-results"
COLUMNS = {
    "step": "step",
    "train_loss": "loss",
    "valid_loss": "eval_loss",
    "valid_mean_token_accuracy": "eval_accuracy",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "tokens_per_second": "tokens_per_second",
}
"""OpenAI's names, where it has one, and ours."""


def write_results(session: Session, storage: Storage, job: Job) -> None:
    """Adds the file, in the transaction that ends the job."""
    sha256 = blobs.keep_content(session, storage, tabulate(session, job).encode())
    session.add(
        File(
            tenant_id=job.tenant_id,
            filename="step_metrics.csv",
            purpose=PURPOSE,
            blob_sha256=sha256,
            job_id=job.id,
            status="processed",
        )
    )


def tabulate(session: Session, job: Job) -> str:
    """One line a step; what was not measured there is empty."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for point in metrics.join_chunks(repository.metric_chunks(session, job.id)):
        table.writerow([point.get(name) for name in COLUMNS.values()])
    return text.getvalue()
