"""`tunesmith files`: uploaded data sets."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from client import display
from client.api import DEFAULT_URL
from client.options import Json, Limit, Url, connect, print_json

app = typer.Typer(no_args_is_help=False, help="Uploaded data sets: list them, or upload one.")


@app.callback(invoke_without_command=True)
def files(context: typer.Context, limit: Limit = 20, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand:
        return
    with connect(url) as client:
        data = client.files(limit=limit)
    print_json(data) if as_json else display.files(Console(), data)


@app.command()
def upload(
    path: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="JSONL, JSON, Parquet or CSV.")],
    url: Url = DEFAULT_URL,
    as_json: Json = False,
) -> None:
    """Upload a data set and print its id."""
    with connect(url) as client:
        file = client.upload(path)
    print_json(file) if as_json else print(file["id"])


@app.command("report")
def file_report(file_id: Annotated[str, typer.Argument(metavar="ID")], url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Tell what is in a data set, and which rows are refused and why."""
    with connect(url) as client:
        data = client.file_report(file_id)
    print_json(data) if as_json else display.file_report(Console(), data)
