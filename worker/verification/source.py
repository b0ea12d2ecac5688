"""What the exported model must be: the base model with the adapter added."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.exports.merged import Adapter, read_shards, reason_for_peft
from worker.verification.reference import Tell, compute_logits, compute_whole
from worker.verification.weights import Weights


@dataclass(frozen=True)
class Source:
    """Where the model comes from. `is_sum`: its weights are the base's plus a plain product of the adapter's."""

    base: Path
    adapter: Path
    merged: Path | None
    is_sum: bool

    @classmethod
    def of(cls, base: Path, adapter: Path, merged: Path | None) -> "Source":
        return cls(base, adapter, merged, reason_for_peft(Adapter.at(adapter), base, read_shards(base)) is None)

    def base_logits(self, documents: list[np.ndarray], tell: Tell) -> list[np.ndarray]:
        """The base model's, see worker.verification.reference."""
        return compute(self.base, Weights(self.base), None, documents, tell)

    def merged_logits(self, documents: list[np.ndarray], tell: Tell) -> list[np.ndarray]:
        """The merged model's, see worker.verification.reference."""
        if self.is_sum:
            return compute(self.base, Weights(self.base, self.adapter), self.adapter, documents, tell)
        if self.merged:
            return compute(self.merged, Weights(self.merged), None, documents, tell)
        return compute_whole(self.base, self.adapter, documents)


def compute(folder: Path, weights: Weights, adapter: Path | None, documents: list[np.ndarray], tell: Tell) -> list[np.ndarray]:
    """Streamed if the files name the weights as the architecture does; else with all of them in memory."""
    try:
        return compute_logits(folder, weights, documents, tell)
    except KeyError as unnamed:
        print(f"The whole model is loaded: the files hold no {unnamed}.", flush=True)
        return compute_whole(folder, adapter, documents)
