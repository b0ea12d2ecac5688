"""What every command of the command line takes, and how it answers."""

import json
import os
from typing import Annotated, Any

import typer

from client.api import Client

Url = Annotated[str, typer.Option("--url", envvar="TUNESMITH_URL", help="Address of the service.")]
Json = Annotated[bool, typer.Option("--json", help="Print the service's JSON.")]
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")]


def connect(url: str) -> Client:
    return Client(url, os.environ.get("TUNESMITH_API_KEY"))


def print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False, indent=2))
