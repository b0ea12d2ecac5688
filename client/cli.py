"""The command line `tunesmith`."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markdown import Markdown

from client import display
from client.api import DEFAULT_URL, ApiError, Client, ClientError
from client.download import choose, download, transfer_bar
from client.follow import follow, watch
from client.spec import merge, read_spec, upload_named_files

PARTS = {
    "up": ("app.up", "Run the whole service on this machine."),
    "api": ("app.main", "Run the HTTP API alone."),
    "worker": ("worker.main", "Run one worker alone: --queues gpu, cpu or notify."),
    "reaper": ("app.reaper", "Run the loop that finds lost work alone."),
}

app = typer.Typer(
    name="tunesmith", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    help="Fine-tune language models through a Tunesmith service.",
    epilog="TUNESMITH_URL names the service, TUNESMITH_API_KEY opens it.",
)  # fmt: skip
file_commands = typer.Typer(no_args_is_help=False, help="Uploaded data sets: list them, or upload one.")
app.add_typer(file_commands, name="files")
secret_commands = typer.Typer(
    no_args_is_help=False, help="Stored tokens, which specs name as secret:NAME: list, set or delete them."
)
app.add_typer(secret_commands, name="secrets")
key_commands = typer.Typer(no_args_is_help=False, help="API keys: list, create or revoke them.")
app.add_typer(key_commands, name="keys")

Url = Annotated[str, typer.Option("--url", envvar="TUNESMITH_URL", help="Address of the service.")]
Json = Annotated[bool, typer.Option("--json", help="Print the service's JSON.")]
Following = Annotated[bool, typer.Option("--follow", help="Show the job until it has ended; exit 1 unless it succeeded.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]
SecretName = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")]


def main() -> None:
    try:
        app()
    except ClientError as error:
        text = json.dumps(error.to_json()) if "--json" in sys.argv else f"Error: {describe(error)}"
        print(text, file=sys.stderr)
        sys.exit(1)


def describe(error: ClientError) -> str:
    """The sentence; and, of a refusal with several reasons, each with the field that it is about."""
    if isinstance(error, ApiError) and error.status == 401:
        return f"{error} The command line sends what TUNESMITH_API_KEY says."
    details = error.to_json()["error"].get("details") or []
    lines = [f"\n  {item.get('param') or '-'}: {item.get('message')}" for item in details] if len(details) > 1 else []
    return str(error) + "".join(lines)


def connect(url: str) -> Client:
    return Client(url, os.environ.get("TUNESMITH_API_KEY"))


def print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))


def add_part(name: str, module: str, help_text: str) -> None:
    """`tunesmith NAME …` becomes `python -m MODULE …`: this package imports neither the API nor the worker."""

    @app.command(
        name, help=help_text + " Flags are the settings' names.", add_help_option=False, rich_help_panel="Service",
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )  # fmt: skip
    def run(context: typer.Context) -> NoReturn:
        os.execv(sys.executable, [sys.executable, "-m", module, *context.args])  # noqa: S606 — no shell is wanted


for part, (module, help_text) in PARTS.items():
    add_part(part, module, help_text)


@app.command()
def submit(
    path: Annotated[Path, typer.Argument(metavar="JOB.json", exists=True, dir_okay=False, help="The job's spec.")],
    following: Following = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Submit a job. A data set file of this machine that it names is uploaded first."""
    spec = read_spec(path)
    with connect(url) as client:
        upload_named_files(client, spec, path.parent)
        job = client.submit(spec)
        if not following:
            print_json(job) if as_json else print(job["id"])
            return
        if not as_json:
            print(f"Submitted {job['id']}. Ctrl-C leaves it running, `tunesmith cancel {job['id']}` stops it.")
        show_until_ended(client, job["id"], as_json)


def show_until_ended(client: Client, job_id: str, as_json: bool) -> None:
    job = print_events(client, job_id) if as_json else follow(client, job_id, Console())
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def print_events(client: Client, job_id: str) -> dict[str, Any]:
    """One JSON object a line: each event as it comes, then the ended job."""
    job: dict[str, Any] = {}
    for job, events in watch(client, job_id):  # noqa: B007 — the last look is at the ended job
        for event in events:
            print(json.dumps(event, ensure_ascii=False), flush=True)
    print(json.dumps(job, ensure_ascii=False))
    return job


@app.command()
def jobs(
    status: Annotated[str | None, typer.Option(help="Only jobs of this status.")] = None,
    limit: Limit = 20,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List jobs, the newest first."""
    with connect(url) as client:
        data = client.jobs(limit=limit, status=status)
    print_json(data) if as_json else display.jobs(Console(), data)


@app.command()
def show(job_id: JobId, following: Following = False, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Show a job: where it stands, its stages, its artifacts, what went wrong."""
    with connect(url) as client:
        if following:
            show_until_ended(client, job_id, as_json)
            return
        job = client.job(job_id)
    print_json(job) if as_json else display.job(Console(), job)


@app.command()
def logs(
    job_id: JobId,
    stage: Annotated[str | None, typer.Option(help="Only this stage: prepare, train, merge or convert.")] = None,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last lines, this many.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Print what a job's processes wrote."""
    with connect(url) as client:
        text = client.logs(job_id, stage=stage, tail=tail)
    print_json({"logs": text}) if as_json else sys.stdout.write(text)


@app.command()
def cancel(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Ask a job to stop."""
    with connect(url) as client:
        job = client.cancel(job_id)
    print_json(job) if as_json else print(f"{job_id} is {job['status']}; it stops as soon as its stage does.")


@app.command()
def pause(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Let a job save and leave its worker, until it is resumed."""
    with connect(url) as client:
        job = client.pause(job_id)
    if as_json:
        print_json(job)
    else:
        print(f"{job_id} is paused." if job["status"] == "paused" else f"{job_id} is paused as soon as its stage has saved.")


@app.command()
def resume(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Queue a paused job again."""
    with connect(url) as client:
        job = client.resume(job_id)
    print_json(job) if as_json else print(f"{job_id} is {job['status']}; it goes on where it stopped.")


@app.command()
def retry(
    job_id: JobId,
    overrides: Annotated[
        Path | None, typer.Option("--with", exists=True, dir_okay=False, help="A JSON file with parts of the spec to change.")
    ] = None,
    patched: Annotated[bool, typer.Option("--patched", help="With the patch that the job's error suggests.")] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Queue a failed or cancelled job again, from the first stage that has to run again."""
    with connect(url) as client:
        change = read_spec(overrides) if overrides else {}
        if overrides:
            upload_named_files(client, change, overrides.parent)
        if patched:
            change = merge(find_patch(client, job_id), change)
        job = client.retry(job_id, change)
    print_json(job) if as_json else print(f"{job_id} is queued again, from stage {job['stage']}.")


def find_patch(client: Client, job_id: str) -> dict[str, Any]:
    patch = (client.job(job_id)["error"] or {}).get("patch")
    if not patch:
        raise ClientError(f"{job_id} has no error that suggests a patch. `tunesmith show {job_id}` tells what happened.")
    return patch


@app.command()
def delete(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Delete a job that is not running, and its artifacts."""
    with connect(url) as client:
        client.delete(job_id)
    print_json({"id": job_id, "deleted": True}) if as_json else print(f"{job_id} is deleted.")


@app.command("download")
def download_artifacts(
    job_id: JobId,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One artifact, or a folder of them like gguf; without it, all.")
    ] = None,
    folder: Annotated[Path | None, typer.Option("--to", help="Folder to write to; by default one named like the job.")] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Download artifacts, going on where an earlier try stopped, and check their SHA-256."""
    folder = folder or Path(job_id)
    with connect(url) as client, transfer_bar() as bar:
        wanted = choose(client.artifacts(job_id), name)
        task = bar.add_task("", total=None)
        done = []
        for artifact in wanted:
            bar.update(task, description=artifact["name"], total=artifact["bytes"], completed=0)
            path = download(client, job_id, artifact, folder, lambda size: bar.update(task, completed=size))
            done.append(artifact | {"path": str(path)})
            if not as_json:
                bar.console.print(f"{artifact['sha256']}  {path}", soft_wrap=True, markup=False, highlight=False)
    if as_json:
        print_json(done)


@app.command()
def report(job_id: JobId, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Print a job's experiment report: rendered on a terminal, Markdown elsewhere."""
    with connect(url) as client:
        if as_json:
            print_json(client.report_data(job_id))
            return
        text = client.report(job_id)
    console = Console()
    console.print(Markdown(text)) if console.is_terminal else print(text)


@file_commands.callback(invoke_without_command=True)
def files(context: typer.Context, limit: Limit = 20, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand:
        return
    with connect(url) as client:
        data = client.files(limit=limit)
    print_json(data) if as_json else display.files(Console(), data)


@file_commands.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL, JSON, Parquet or CSV.")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Upload a data set and print its id."""
    with connect(url) as client:
        file = client.upload(path)
    print_json(file) if as_json else print(file["id"])


@file_commands.command("report")
def file_report(file_id: Annotated[str, typer.Argument(metavar="ID")], url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Tell what is in a data set, and which rows are refused and why."""
    with connect(url) as client:
        data = client.file_report(file_id)
    print_json(data) if as_json else display.file_report(Console(), data)


@secret_commands.callback(invoke_without_command=True)
def secrets(context: typer.Context, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand:
        return
    with connect(url) as client:
        data = client.secrets()
    rows = [[secret["name"], secret["updated_at"]] for secret in data]
    print_json(data) if as_json else display.table(Console(), ["SECRET", "SET"], rows, empty="None.")


@secret_commands.command("set")
def set_secret(name: SecretName, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Store a secret, or a new value of it, read from a pipe or typed unseen: arguments can be read by others."""
    value = typer.prompt(f"Value of {name}", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()
    with connect(url) as client:
        secret = client.put_secret(name, value.strip())
    print_json(secret) if as_json else print(f"{name} is stored. A job names it as secret:{name}.")


@secret_commands.command("delete")
def delete_secret(name: SecretName, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Delete a secret. Jobs that name it fail when they need it."""
    with connect(url) as client:
        client.delete_secret(name)
    print_json({"name": name, "deleted": True}) if as_json else print(f"{name} is deleted.")


@key_commands.callback(invoke_without_command=True)
def keys(context: typer.Context, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_keys(url, as_json)


@key_commands.command("list")
def list_keys(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """List the keys, by their last four characters."""
    with connect(url) as client:
        data = client.keys()
    columns = ["KEY", "HINT", "NAME", "TENANT", "SCOPES", "EXPIRES", "LAST USED"]
    print_json(data) if as_json else display.table(Console(), columns, [key_row(key) for key in data], empty="None.")


def key_row(key: dict[str, Any]) -> list[Any]:
    scopes = " ".join(key["scopes"])
    return [
        key["id"],
        key["hint"],
        key["name"] or "-",
        key["tenant"],
        scopes,
        key["expires_at"] or "-",
        key["last_used_at"] or "-",
    ]


@key_commands.command("create")
def create_key(
    name: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="read, write or admin; may be repeated. By default read and write.")
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose it is; by default your own.")] = None,
    days: Annotated[float | None, typer.Option("--expires-in-days", help="By default it does not expire.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Through the database in TUNESMITH_DATA_DIR: the first key. All scopes by default.")
    ] = False,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Create a key and print it: it is shown this once."""
    wanted = {"name": name, "scopes": scopes, "tenant": tenant, "expires_in_seconds": round(days * 86400) if days else None}
    wanted = {field: value for field, value in wanted.items() if value}
    if local:
        flags = ["--json"] if as_json else []
        command = [sys.executable, "-m", "app.keys.local", json.dumps(wanted), *flags]
        os.execv(sys.executable, command)  # noqa: S606 — no shell is wanted
    with connect(url) as client:
        key = client.create_key(wanted)
    print_json(key) if as_json else print(key["key"])


@key_commands.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Revoke a key: whoever sends it is refused from now on."""
    with connect(url) as client:
        client.revoke_key(key_id)
    print_json({"id": key_id, "deleted": True}) if as_json else print(f"{key_id} is revoked.")


@app.command()
def models(url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """List the base models that need no download."""
    with connect(url) as client:
        data = client.models()
    print_json(data) if as_json else display.table(Console(), ["MODEL"], [[model["id"]] for model in data], empty="None.")


@app.command()
def workers(
    host: Annotated[
        str | None, typer.Option("--alive", metavar="HOST", help="Exit 1 unless a worker of this host is alive.")
    ] = None,
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """List the workers that are alive."""
    with connect(url) as client:
        data = [worker for worker in client.workers() if worker["alive"] and host in (None, worker["host"])]
    print_json(data) if as_json else display.workers(Console(), data)
    if host and not data:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
