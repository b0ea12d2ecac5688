"""Data sets of the hub, through `datasets`: Parquet, JSON and CSV files only, at a pinned commit, with no code of theirs.

cache_dir/datasets/<repo, / as -->/<commit>/<split>/      Arrow tables, which are mapped, never loaded whole
                                           /downloads/    what had to be unpacked

The files themselves are where the hub's client keeps its own, HF_HOME.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from app.jobs.spec import HubDataset
from app.jobs.states import FailureCode
from worker.data import hub
from worker.data.readers import read_csv
from worker.data.rows import Refusal, Row
from worker.stages import StageFailure

BATCH_ROWS = 1024
CONTAINERS = ("parquet", "json", "csv")

Rows = Callable[[], Iterator[Row | Refusal]]
"""Reads the rows from the start each time."""


def open_hub_dataset(source: HubDataset, *, cache_dir: Path, token: str | None, report: Any) -> tuple[Rows, str]:
    """The rows, and the commit that they are of. Only the files of the split that is asked for are downloaded, once.

    StageFailure: dataset_not_found, dataset_invalid, invalid_spec (config or split), hub_unauthorized, hub_unavailable.
    """
    subject = hub.data_set(source.repo)
    report("progress", message=f"Fetching the data set {source.repo}")
    commit = hub.patiently(subject, partial(resolve, source, token), report)
    # A folder for each commit: where the hub fails half-way, `datasets` falls back on any commit that it finds here.
    folder = cache_dir / "datasets" / source.repo.replace("/", "--") / commit
    return hub.patiently(subject, partial(open_rows, source, commit, folder, token), report), commit


def resolve(source: HubDataset, token: str | None) -> str:
    """The commit that the revision names now, when one of its files, the smallest, can be read with the token.

    The list of files is open for all, and what is in the cache may be another account's.
    """
    from huggingface_hub import HfApi, constants, get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    info = HfApi(token=token).dataset_info(source.repo, revision=source.revision, files_metadata=True)
    commit = str(info.sha)
    if files := sorted(info.siblings or [], key=lambda file: file.size or 0):
        address = hf_hub_url(source.repo, files[0].rfilename, repo_type="dataset", revision=commit)
        headers, timeout = build_hf_headers(token=token), constants.HF_HUB_ETAG_TIMEOUT
        hf_raise_for_status(get_session().head(address, headers=headers, timeout=timeout))
    return commit


def open_rows(source: HubDataset, commit: str, folder: Path, token: str | None) -> Rows:
    from datasets import DownloadConfig, DownloadManager, VerificationMode, load_dataset_builder
    from datasets.data_files import DataFilesDict

    with dataset_errors(source):
        split = split_name(source)
        download = DownloadConfig(cache_dir=folder / "downloads", token=token)
        builder = load_dataset_builder(
            source.repo, source.config, revision=commit, cache_dir=str(folder / split), download_config=download, token=token
        )
        container = type(builder).__module__.rpartition(".")[2]
        if container not in CONTAINERS:
            raise not_readable(source, "its files are neither Parquet, JSON nor CSV")
        files = builder.config.data_files
        splits = [str(name) for name in files]
        if split not in splits:
            raise wrong_field(source, "split", f"it has {', '.join(map(repr, splits))}, not {split!r}", splits)
        builder.config.data_files = DataFilesDict({split: files[split]})
        if container == "csv":
            # Our reader, as for uploads: pandas would make numbers of texts and nothing of an empty one.
            paths = DownloadManager(source.repo, download_config=download).download(list(files[split]))
            return partial(read_csv_files, source, [Path(path) for path in paths])
        builder.download_and_prepare(download_config=download, verification_mode=VerificationMode.NO_CHECKS)
        return partial(read_table, builder.as_dataset(split=source.split).with_format("arrow"))


def split_name(source: HubDataset) -> str:
    """Of `train[:100]` the `train`."""
    match = re.fullmatch(r"(\w[\w.-]*)(\[[^\[\]]*\])?", source.split)
    if match is None:
        raise wrong_field(source, "split", f"{source.split!r} is none; write a name, as in train, or train[:1000]", [])
    return match[1]


def read_table(table: Any) -> Iterator[Row]:
    number = 0
    for batch in table.iter(batch_size=BATCH_ROWS):
        for fields in batch.to_pylist():
            number += 1
            yield Row(number, fields)


def read_csv_files(source: HubDataset, paths: list[Path]) -> Iterator[Row | Refusal]:
    """The rows are numbered over all files."""
    if source.split != split_name(source):
        raise wrong_field(source, "split", "a part of a split can be named for Parquet and JSON only", [split_name(source)])
    number = 0
    for path in paths:
        for item in read_csv(path):
            number += 1
            yield item._replace(line=number)


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
        if isinstance(problem.__cause__, LocalEntryNotFoundError):  # the hub did not answer
            raise problem.__cause__ from None
        raise not_readable(source, "it has no data files that can be read") from problem
    except (RuntimeError, ArrowException) as problem:
        raise not_readable(source, str(problem)) from problem
    except ValueError as problem:
        # Told by its text alone: "BuilderConfig … not found. Available: […]", "Config name is missing. … ['a', 'b']".
        if "config" not in str(problem).lower():
            raise not_readable(source, str(problem)) from problem
        named = re.findall(r"'([^']+)'", str(problem).partition("[")[2].partition("]")[0])
        known = f"it has {', '.join(map(repr, named))}" if named else first_line(str(problem))
        raise wrong_field(source, "config", f"{known}, not {source.config!r}", named) from problem


def wrong_field(source: HubDataset, field: str, reason: str, choices: list[str]) -> StageFailure:
    message = f"The data set {source.repo} has no such {field}: {reason}."
    patch = {"dataset": {"hub": {field: choices[0]}}} if len(choices) == 1 else None
    hint = f"Set dataset.hub.{field} to one that the data set has, then submit the job again."
    return StageFailure(FailureCode.INVALID_SPEC, message, hint=hint, param=f"dataset.hub.{field}", patch=patch)


def not_readable(source: HubDataset, reason: str) -> StageFailure:
    message = f"The data set {source.repo} cannot be used: {first_line(reason)}."
    hint = "Use one with Parquet, JSON or CSV files and no script, or upload its rows as a file."
    return StageFailure(FailureCode.DATASET_INVALID, message, hint=hint, param="dataset.hub.repo")


def first_line(text: str) -> str:
    return text.strip().split("\n")[0][:300].rstrip(".")
