"""How far a file's probabilities are from those of the model that it was made of."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

CHUNK_ROWS = 32
MOST_LOSS = 100.0
"""A mean loss above this, in nats, has no perplexity that says anything."""


@dataclass(frozen=True)
class Divergence:
    """Over `tokens` places in held-out text; not a number where a probability is not one.

    `kl` is the mean Kullback-Leibler divergence KL(merged model ‖ file), in nats; the perplexities are of the next token;
    `top1` is how often both hold the same token for the likeliest. `adapter` is how many times the file seems to have the
    adapter in it: 1 for one that is right, 0 for the base model, 2 for one that was merged twice; `adapter_error` is the
    standard error of that over the tokens. `adapter_share` is how much of what the file has wrong goes with what training
    changed, 0 to 1: near 1 if the adapter is the fault, little if the quantization is. All are None for an adapter that changes
    nothing.
    """

    kl: float
    perplexity: float | None
    reference_perplexity: float | None
    top1: float
    tokens: int
    adapter: float | None
    adapter_error: float | None
    adapter_share: float | None


def measure(
    documents: list[np.ndarray], merged: Iterable[np.ndarray], base: Iterable[np.ndarray], found: Iterable[np.ndarray]
) -> Divergence:
    """The logits [n, vocabulary] of each document of n tokens: the merged model's, the base model's and the file's. Where one
    has more columns than another, they are padding. A document's last token counts for no perplexity."""
    sums = np.zeros(4)
    products: list[np.ndarray] = []
    for document, *logits in zip(documents, merged, base, found, strict=True):
        width = min(item.shape[1] for item in logits)
        for start in range(0, len(document), CHUNK_ROWS):
            ours, before, theirs = (log_softmax(item[start : start + CHUNK_ROWS, :width]) for item in logits)
            following = document[start + 1 : start + 1 + CHUNK_ROWS]
            places = np.arange(len(following)), following
            weights = np.exp(ours)
            agreed = (ours.argmax(1) == theirs.argmax(1)).sum()
            sums += (weights * (ours - theirs)).sum(), agreed, -ours[places].sum(), -theirs[places].sum()
            products.append(covariances(weights, theirs - ours, ours - before))
    tokens = sum(map(len, documents))
    targets = tokens - len(documents)
    kl, top1 = sums[:2] / tokens
    reference_perplexity, perplexity = (perplexity_of(loss, targets) for loss in sums[2:])
    adapter = estimate_adapter(np.concatenate(products, axis=1))
    return Divergence(float(kl), perplexity, reference_perplexity, float(top1), tokens, *adapter)


def covariances(weights: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[3, n]: in each row, the covariance of `one` and `other` under the probabilities `weights`, the variance of `other`, and
    that of `one`; all of them [n, vocabulary]."""
    one = one - (weights * one).sum(1, keepdims=True)
    other = other - (weights * other).sum(1, keepdims=True)
    return np.stack([(weights * one * other).sum(1), (weights * other * other).sum(1), (weights * one * one).sum(1)])


def estimate_adapter(products: np.ndarray) -> tuple[float | None, float | None, float | None]:
    """`adapter`, `adapter_error` and `adapter_share` from the covariances [3, tokens] of what the file has too much with what
    training changed: a ratio of two means, its standard error over the tokens, and the squared correlation."""
    shared, changed, wrong = products.astype(np.float64)
    if not changed.sum() > 0:
        return None, None, None
    excess = shared.sum() / changed.sum()
    error = sqrt(((shared - excess * changed) ** 2).sum()) / float(changed.sum())
    share = float(shared.sum() ** 2 / (changed.sum() * wrong.sum())) if wrong.sum() > 0 else 0.0
    return float(1 + excess), error, share


def perplexity_of(loss: float, tokens: int) -> float | None:
    return exp(loss / tokens) if tokens and loss / tokens <= MOST_LOSS else None


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
