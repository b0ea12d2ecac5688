"""The model that the exports of one job are made from: the base with the adapter on it, merged while it is read.

When the merge has been asked for, its folder is at hand and is read instead. Where peft has to merge, or where the converter
wants to see the weights, a folder is written for as long as the stage lasts.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import Popen

from app.jobs.spec import JobSpec
from app.jobs.states import Stage
from worker.exports import merged, model_folder
from worker.exports.outlines import Outline, ask
from worker.space import require_space
from worker.stages import Inputs, Report


@dataclass
class Source:
    """`scratch` is a folder of the stage's own, gone at its end."""

    spec: JobSpec
    inputs: Inputs
    scratch: Path
    report: Report
    outliner: Popen[bytes]
    reason: str | None = None
    """Why the weights could not be merged while they are read."""

    @property
    def is_merged(self) -> bool:
        """Whether a stage before has merged it; what is left of a merge that is no longer asked for may be old."""
        return bool(self.spec.exports_of("merged"))

    @cached_property
    def base(self) -> Path:
        return model_folder.find_base(self.spec, self.inputs, self.report)

    @cached_property
    def adapter(self) -> merged.Adapter:
        return merged.Adapter.at(self.inputs.folders[Stage.TRAIN] / "adapter")

    @cached_property
    def whole(self) -> Path:
        """A folder with all of the merged model."""
        if self.is_merged:
            return self.inputs.folders[Stage.MERGE] / self.inputs.values[Stage.MERGE]["merged"]
        require_space(self.scratch, model_folder.size_of(self.base), "The merged model")
        folder = self.scratch / "merged"
        folder.mkdir()
        model_folder.write(self.spec, self.inputs, self.base, folder, self.report)
        return folder

    @cached_property
    def merger(self) -> merged.Merger:
        """The weights, from the base and the adapter if that is possible."""
        if not self.is_merged:
            shards = merged.read_shards(self.base)
            self.reason = merged.reason_for_peft(self.adapter, self.base, shards)
            if self.reason is None:
                return merged.Merger(shards, self.adapter)
            message = f"peft has to merge this adapter: {self.reason}. The merged model is on the disk for the time being."
            self.report("warning", code="merged_by_peft", message=message)
        return merged.Merger(merged.read_shards(self.whole), None)

    def outline(self, kinds: list[str]) -> Outline:
        """What the converter would write as each of the kinds."""
        into, folder = self.scratch / "outline", self.scratch / "model"
        into.mkdir()
        if self.merger.adapter is None:
            folder = self.whole
        else:
            folder.mkdir()
            model_folder.write_without_matrices(self.spec, self.inputs, self.base, folder, self.merger)
        return ask(self.outliner, folder, kinds, self.merger, self.inputs.title, self.report, into)
