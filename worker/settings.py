"""What a worker reads from the environment besides the service's settings, and from its flags."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.queue import QUEUES
from app.settings import Settings, read_flags

CONVERTER_DIR = Path(sys.prefix) / "share" / "tunesmith" / "llama.cpp"
"""Where set-up puts llama.cpp's converter: a folder of its own, because it brings its own `gguf`."""


@dataclass(frozen=True)
class WorkerSettings:
    service: Settings
    queues: list[str]


def read_worker_flags(arguments: Sequence[str] | None = None) -> WorkerSettings:
    """`--queues gpu,cpu` and the service's flags."""
    parser = ArgumentParser(prog="tunesmith worker", add_help=False)
    parser.add_argument("--queues", required=True, help=f"some of {', '.join(QUEUES)}, separated by commas")
    service = read_flags("tunesmith worker", arguments, parents=[parser])
    queues = parser.parse_known_args(arguments)[0].queues.split(",")
    if not set(queues) <= set(QUEUES):
        parser.error(f"--queues takes some of {', '.join(QUEUES)}, separated by commas, not {','.join(queues)!r}")
    return WorkerSettings(service=service, queues=queues)
