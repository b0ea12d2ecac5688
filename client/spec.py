"""A job file: its JSON, and the data sets beside it."""

import json
import sys
from pathlib import Path
from typing import Any

from client.api import Client, ClientError
from client.display import size


def read_spec(path: Path) -> dict[str, Any]:
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ClientError(f"{path} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise ClientError(f"{path} holds no JSON object.")
    return spec


def upload_named_files(client: Client, spec: dict[str, Any], folder: Path) -> None:
    """Puts an uploaded file's id where `dataset` names a file in `folder`, else in the current one."""
    dataset = spec.get("dataset")
    if not isinstance(dataset, dict):
        return
    for field in ("file", "validation_file"):
        name = dataset.get(field)
        found = [path for path in (folder / name, Path(name)) if path.is_file()] if isinstance(name, str) else []
        if found:
            print(f"Uploading {found[0]} ({size(found[0].stat().st_size)})", file=sys.stderr)
            dataset[field] = client.upload(found[0])["id"]


def merge(spec: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """`patch` laid over `spec`, object by object."""
    result = dict(spec)
    for key, value in patch.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result
