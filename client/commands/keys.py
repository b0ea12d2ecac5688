"""`tunesmith keys`: who may call."""

import json
import os
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from client import display
from client.api import DEFAULT_URL
from client.options import Json, Url, connect, print_json

app = typer.Typer(no_args_is_help=False, help="API keys: list, create or revoke them.")


@app.callback(invoke_without_command=True)
def keys(context: typer.Context, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_keys(url, as_json)


@app.command("list")
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


@app.command("create")
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


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Revoke a key: whoever sends it is refused from now on."""
    with connect(url) as client:
        client.revoke_key(key_id)
    print_json({"id": key_id, "deleted": True}) if as_json else print(f"{key_id} is revoked.")
