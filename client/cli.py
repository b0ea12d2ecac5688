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
from client.commands import files, keys, secrets, webhooks
from client.download import choose, download, transfer_bar
from client.follow import follow, watch
from client.options import Json, Limit, Url, connect, print_json
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
for name, commands in {"files": files, "secrets": secrets, "keys": keys, "webhooks": webhooks}.items():
    app.add_typer(commands.app, name=name)

Following = Annotated[bool, typer.Option("--follow", help="Show the job until it has ended; exit 1 unless it succeeded.")]
JobId = Annotated[str, typer.Argument(metavar="ID", help="The job's id.")]


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
