"""What has become of the jobs, read from the database at the end, and the table that is printed."""

from collections import Counter, defaultdict
from typing import Any

from database import find_stale_writes
from ledger import Ledger
from sqlalchemy import Engine
from sqlmodel import Session, col, select
from strikes import PUBLICATION, WRITE

from app.artifacts.repository import list_of
from app.db import read_session
from app.jobs.presentation import load_points
from app.jobs.states import EventType, JobStatus
from app.models import Event, Job

COUNTS = ("lost", "run twice", "stale writes", "orphans", "readable partial files", "other adapters", "other losses")
ADAPTER = "adapter/adapter_model.safetensors"


def judge(engine: Engine, ledger: Ledger) -> dict[str, list[str]]:
    """What is wrong, by the names in COUNTS, and `other artifacts` besides."""
    wrong: dict[str, list[str]] = defaultdict(list)
    reference = ledger.all("reference")[0]
    accepted = {job["id"]: job["exports"] for job in ledger.all("job")}
    with read_session(engine) as session:
        losses = read_losses(session, reference["job"])
        jobs = {job.id: job for job in session.exec(select(Job).where(Job.id != reference["job"]))}
        for job_id in accepted.keys() | jobs.keys():
            job = jobs.get(job_id)
            if job is None or job.status is not JobStatus.SUCCEEDED:
                wrong["lost"].append(f"{job_id}: {job and job.status}, {job and job.stage}, {job and job.error}")
                continue
            wrong["run twice"] += find_repetitions(session, job)
            if differing := sorted(step for step, _ in losses.items() ^ read_losses(session, job_id).items()):
                wrong["other losses"].append(f"{job_id}: steps {differing}")
            for artifact, _ in list_of(session, [job_id]):
                if artifact.blob_sha256 != reference["artifacts"][artifact.name]:
                    wrong["other adapters" if artifact.name == ADAPTER else "other artifacts"].append(
                        f"{job_id} {artifact.name}"
                    )
        wrong["stale writes"] = find_stale_writes(session)
    for what, name in (("run twice", "run twice"), ("orphan", "orphans"), ("partial", "readable partial files")):
        wrong[name] += [violation["detail"] for violation in ledger.all("violation") if violation["what"] == what]
    return wrong


def read_losses(session: Session, job_id: str) -> dict[int, float | None]:
    return {point.step: point.loss for point in load_points(session, job_id)}


def find_repetitions(session: Session, job: Job) -> list[str]:
    """Outputs that were published more than once: a stage finishes once in a job, and an artifact gets ready once."""
    published = select(Event).where(
        Event.job_id == job.id, col(Event.type).in_([EventType.STAGE_FINISHED, EventType.JOB_ARTIFACT, EventType.JOB_SUCCEEDED])
    )
    names = Counter(
        f"{event.type} {event.data.get('stage') or event.data.get('name') or ''}" for event in session.exec(published)
    )
    return [f"{job.id}: {count} times {name}" for name, count in names.items() if count > 1]


def count_strikes(ledger: Ledger) -> dict[str, Any]:
    strikes = ledger.all("strike")
    kills = [strike for strike in strikes if strike["signal"] == "KILL"]
    return {
        "kills": len(kills),
        "while_a_stage_ran": sum(kill["stage_runs"] for kill in kills),
        "inside_a_checkpoint_write": sum(kill["inside"] == WRITE for kill in kills),
        "between_result_and_publication": sum(kill["inside"] == PUBLICATION for kill in kills),
        "stops": sum(strike["signal"] == "STOP" for strike in strikes),
        "terms": sum(strike["signal"] == "TERM" for strike in strikes),
    }


def print_strikes(ledger: Ledger) -> None:
    """A line for each signal and target, a column for each phase."""
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for strike in ledger.all("strike"):
        phase = strike["phase"].partition(", step")[0]
        table[strike["signal"], strike["target"]][f"train, {strike['inside']}" if strike["inside"] == WRITE else phase] += 1
    phases = sorted({phase for row in table.values() for phase in row})
    print(f"{'signal and target':20}" + "".join(f"{phase:>25}" for phase in phases) + f"{'all':>8}")
    for (number, target), row in sorted(table.items()):
        print(f"{number + ' ' + target:20}" + "".join(f"{row[phase]:25}" for phase in phases) + f"{row.total():8}")
