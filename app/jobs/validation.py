"""Everything that can be known to be wrong with a spec before it is queued."""

from typing import Any

from sqlmodel import Session

from app import hub
from app.base_models import catalog
from app.db import read_session
from app.errors import Detail, InvalidSpec
from app.files import repository as files
from app.jobs import lineage
from app.jobs.availability import check_available, check_combinations, check_form
from app.jobs.spec import WEBHOOK_SECRET, JobSpec
from app.models import File
from app.secrets import service as secrets
from app.settings import Settings
from app.tenancy import tenant_of
from app.webhooks.addresses import UnsafeTarget, parse_url
from app.webhooks.signing import is_secret

SHOWN_REFUSALS = 3


def validate(session: Session, settings: Settings, spec: JobSpec) -> None:
    """Raises one InvalidSpec with all that was found. What the hub is asked for comes before the session's first statement: no
    transaction is open while it answers."""
    details = [*check_available(spec), *check_combinations(spec)]
    values, missing = read_secrets(session, settings, spec)
    details += missing
    if not missing:
        details += check_names(settings, spec, values.get("hub_token"))
    for field in ("file", "validation_file"):
        if (file_id := getattr(spec.dataset, field)) is not None:
            details += check_file(files.find(session, file_id), file_id, spec, f"dataset.{field}")
    details += lineage.check_source(session, spec)
    details += check_webhook(settings, spec, values.get(WEBHOOK_SECRET))
    if details:
        raise InvalidSpec.of(details)


def read_secrets(session: Session, settings: Settings, spec: JobSpec) -> tuple[dict[str, str], list[Detail]]:
    """The values of the secrets that the spec names, by field, and what is wrong with the others."""
    values: dict[str, str] = {}
    missing = []
    tenant_id = tenant_of(session)
    with read_session(session.get_bind().engine) as reading:
        for param, name in spec.secrets().items():
            value = secrets.read(reading, settings, tenant_id, name)
            if value is None:
                message = f"{param}: there is no secret {name!r} that can be read. PUT /v1/secrets/{name} or "
                missing.append(Detail(param, f"{message}`tunesmith secrets set {name}` stores one.", "secret_not_found"))
            else:
                values[param] = value
    return values, missing


def check_names(settings: Settings, spec: JobSpec, token: str | None) -> list[Detail]:
    """What is wrong with the base model and the data set that the spec names; the hub is asked about its own."""
    problems = [catalog.check(spec.base_model, spec.revision, settings, token)]
    if spec.dataset.hub is not None:
        problems.append(hub.check_data_set(spec.dataset.hub.repo, spec.dataset.hub.revision, token))
    return [problem for problem in problems if problem is not None]


def check_webhook(settings: Settings, spec: JobSpec, key: str | None) -> list[Detail]:
    """What is wrong with the URL's form, or with the key of that name."""
    if spec.webhook is None:
        return []
    details = []
    try:
        parse_url(spec.webhook.url, settings.webhook_allow_cidrs)
    except UnsafeTarget as problem:
        details.append(Detail("webhook.url", f"webhook.url: {problem}."))
    if key is not None and not is_secret(key):
        message = f"{WEBHOOK_SECRET}: the secret does not hold whsec_ and 24 to 64 bytes in base64; "
        details.append(Detail(WEBHOOK_SECRET, f'{message}`echo "whsec_$(openssl rand -base64 32)"` makes such a key.'))
    return details


def check_file(file: File | None, file_id: str, spec: JobSpec, param: str) -> list[Detail]:
    """What is not known yet, because no worker has read the file, is decided by `prepare`."""
    if file is None:
        message = f"{param}: there is no file {file_id!r}. POST /v1/files uploads one and answers its id."
        return [Detail(param, message, "dataset_not_found")]
    if file.job_id is not None:
        message = f"{param}: {file_id} holds the results of a job; name an uploaded data set."
        return [Detail(param, message, "dataset_invalid")]
    if file.status == "error":
        return [Detail(param, f"{param}: the file cannot be read: {file.status_details}", "dataset_invalid")]
    report = file.report
    if report is None or spec.dataset.format not in ("auto", report["format"]):
        return []
    if spec.dataset.format == "auto" and (details := check_form(spec, report["format"], param)):
        return details
    rows, refused = report["rows"], report["rows_refused"]
    if rows <= refused:
        message = f"{param}: none of its {rows} rows can be trained on. {describe_refusals(report)}"
        return [Detail(param, message.rstrip(), "dataset_empty")]
    if refused and param == "dataset.validation_file":
        message = (
            f"{param}: {refused} of {rows} rows are refused; a validation file must have none. {describe_refusals(report)}"
        )
        return [Detail(param, message, "dataset_invalid")]
    if refused > spec.dataset.max_refused:
        message = f"{param}: {refused} of {rows} rows are refused, dataset.max_refused is {spec.dataset.max_refused}. "
        patch = {"dataset": {"max_refused": refused}}
        return [Detail(param, message + describe_refusals(report), "dataset_invalid", patch)]
    return []


def describe_refusals(report: dict[str, Any]) -> str:
    shown = report["refusals"][:SHOWN_REFUSALS]
    return " ".join(f"Line {refusal['line']}: {refusal['reason'].rstrip('.')}." for refusal in shown)
