"""The last stage: the artifacts to repositories of the hub, each with a card. Done again, it sends what is missing."""

from pathlib import Path

from app.jobs.spec import JobSpec, Publication
from app.jobs.states import Stage
from worker.publishing import RepositoryFile
from worker.publishing.card import Record, render
from worker.publishing.failures import Target
from worker.publishing.layout import CARD, arrange
from worker.publishing.push import push
from worker.stages import Inputs, Outcome, Report


def run(spec: JobSpec, inputs: Inputs, out: Path, report: Report) -> Outcome:
    """`values`: published [{repo, url, commit, files}]. StageFailure hub_unauthorized, hub_unavailable, invalid_spec."""
    published = []
    for place, entry in enumerate(spec.publish):
        files = arrange(inputs.artifacts, entry.artifacts)
        card = render(gather(spec, entry, files, inputs))
        files.append(RepositoryFile.of(CARD, card.encode()))
        token = inputs.secret(entry.token) or ""
        pushed = push(Target(place, entry.repo), files, token, report, private=entry.private, message=f"Publish {inputs.title}")
        print(f"{entry.repo} is at {pushed.commit}{', as before' * (not pushed.is_new)}.", flush=True)
        published.append({"repo": entry.repo, "url": pushed.url, "commit": pushed.commit, "files": len(files)})
    return Outcome({"published": published})


def gather(spec: JobSpec, entry: Publication, files: list[RepositoryFile], inputs: Inputs) -> Record:
    prepared = inputs.values[Stage.PREPARE]
    return Record(
        title=inputs.title,
        spec=spec,
        entry=entry,
        files=files,
        artifacts=inputs.artifacts,
        base=prepared["base_model"],
        counts=prepared["counts"],
        trained=inputs.values[Stage.TRAIN],
        metrics=inputs.metrics,
    )
