"""Data sets of the hub, through `datasets`: Parquet and JSON files only, at a pinned commit, with no code of theirs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.jobs.spec import HubDataset
from app.jobs.states import FailureCode
from worker.data import hub
from worker.data.rows import Row
from worker.stages import StageFailure

BATCH_ROWS = 1024
CONTAINERS = ("parquet", "json")


def open_hub_dataset(
    source: HubDataset, *, cache_dir: Path, token: str | None, report: Any
) -> tuple[Callable[[], Iterator[Row]], str]:
    """A function that reads the rows from the start, and the commit that they are of.

    StageFailure: dataset_not_found, dataset_invalid, invalid_spec (config or split), hub_unauthorized, hub_unavailable.
    """
    from datasets import DownloadConfig, load_dataset_builder
    from huggingface_hub import HfApi

    report("progress", message=f"Fetching the data set {source.repo}")
    with (
        hub.hub_errors(hub.data_set(source.repo)),
        dataset_errors(source),
    ):
        commit = str(HfApi(token=token).dataset_info(source.repo, revision=source.revision).sha)
        # A folder for each commit: where the hub fails half-way, `datasets` falls back on any commit that it finds here.
        folder = cache_dir / "datasets" / source.repo.replace("/", "--") / commit
        download = DownloadConfig(cache_dir=folder / "downloads", token=token)
        builder = load_dataset_builder(
            source.repo, source.config, revision=commit, cache_dir=str(folder), download_config=download, token=token
        )
        if type(builder).__module__.rpartition(".")[2] not in CONTAINERS:
            raise not_readable(source, "its files are neither Parquet nor JSON")
        builder.download_and_prepare(download_config=download)
        table = builder.as_dataset(split=source.split).with_format("arrow")

    def read() -> Iterator[Row]:
        number = 0
        for batch in table.iter(batch_size=BATCH_ROWS):
            for fields in batch.to_pylist():
                number += 1
                yield Row(number, fields)

    return read, commit


@contextmanager
def dataset_errors(source: HubDataset) -> Iterator[None]:
    """What `datasets` raises by itself; the hub's own errors go through."""
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from pyarrow import ArrowException

    try:
        yield
    except DatasetNotFoundError as problem:
        # The hub's own error is cut off here; what it was is only in the text.
        if "gated" in str(problem):
            raise hub.gated(hub.data_set(source.repo)) from problem
        raise not_readable(source, str(problem)) from problem
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError):
        raise
    except DatasetGenerationError as problem:
        raise not_readable(source, str(problem.__cause__ or problem)) from problem
    except FileNotFoundError as problem:
        raise not_readable(source, "it has no data files that can be read") from problem
    except (RuntimeError, ArrowException) as problem:
        raise not_readable(source, str(problem)) from problem
    except ValueError as problem:
        # These two are told by their text alone: "Unknown split …", "BuilderConfig … not found".
        field = next((field for field in ("split", "config") if field in str(problem).lower()), None)
        if field is None:
            raise not_readable(source, str(problem)) from problem
        message = f"The data set {source.repo} has no such {field}: {first_line(str(problem))}."
        raise StageFailure(FailureCode.INVALID_SPEC, message, param=f"dataset.hub.{field}") from problem


def not_readable(source: HubDataset, reason: str) -> StageFailure:
    message = f"The data set {source.repo} cannot be used: {first_line(reason)}."
    hint = "Use one with Parquet or JSON files, or upload its rows as a file."
    return StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="dataset.hub.repo")


def first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300].rstrip(".")
