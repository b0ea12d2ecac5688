"""`tunesmith secrets`: stored tokens, which specs name."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from client import display
from client.api import DEFAULT_URL
from client.options import Json, Url, connect, print_json

app = typer.Typer(no_args_is_help=False, help="Stored tokens, which specs name as secret:NAME: list, set or delete them.")
SecretName = Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")]


@app.callback(invoke_without_command=True)
def secrets(context: typer.Context, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    if context.invoked_subcommand:
        return
    with connect(url) as client:
        data = client.secrets()
    rows = [[secret["name"], secret["updated_at"]] for secret in data]
    print_json(data) if as_json else display.table(Console(), ["SECRET", "SET"], rows, empty="None.")


@app.command("set")
def set_secret(name: SecretName, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Store a secret, or a new value of it, read from a pipe or typed unseen: arguments can be read by others."""
    value = typer.prompt(f"Value of {name}", hide_input=True) if sys.stdin.isatty() else sys.stdin.read()
    with connect(url) as client:
        secret = client.put_secret(name, value.strip())
    print_json(secret) if as_json else print(f"{name} is stored. A job names it as secret:{name}.")


@app.command("delete")
def delete_secret(name: SecretName, url: Url = DEFAULT_URL, as_json: Json = False) -> None:
    """Delete a secret. Jobs that name it fail when they need it."""
    with connect(url) as client:
        client.delete_secret(name)
    print_json({"name": name, "deleted": True}) if as_json else print(f"{name} is deleted.")
