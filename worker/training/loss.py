"""Cross-entropies of the trained tokens, without the logits of a whole batch ever existing.

Each chunk of tokens is projected once and its gradient is taken at once: with p = softmax(h Wᵀ),
d(-log p[y]) / dh = (p - onehot(y)) W. Where the head is trained too, its gradient (p - onehot(y))ᵀ h hangs on what
each token's loss is multiplied by later, so each chunk is projected again for it. Sums and softmax are in fp32, matrix products
in the format of the hidden states.
"""

from typing import Any

import torch
from torch import Tensor

LOGITS_PER_CHUNK = 2**25
"""At 4 bytes a logit a chunk takes 128 MiB, 261 tokens of a vocabulary of 128,256: less than a layer's backward pass needs."""


def cross_entropies(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """-log p[target] of each token, fp32 [tokens]. Its gradient can be taken once.

    `hidden` [tokens, width] and the head's `weight` [vocabulary, width], in the same format or, where it is trained, fp32;
    `targets` int64 [tokens].
    """
    return _CrossEntropies.apply(hidden, weight, targets)


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        head = weight.to(hidden.dtype)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        for chunk in chunks(len(targets), len(head)):
            at_target, total, scores = project(hidden[chunk], head, targets[chunk])
            losses[chunk] = total.log()[:, 0] - at_target
            if gradient is not None:
                gradient[chunk] = slopes(scores, total, targets[chunk]).to(head.dtype) @ head
        ctx.save_for_backward(gradient, *((hidden, weight, targets) if ctx.needs_input_grad[1] else ()))
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        gradient, *of_head = ctx.saved_tensors
        factors = upstream[0]
        head_gradient = head_gradient_of(factors, *of_head) if of_head else None
        if gradient is not None:
            # The factors stay fp32: with fp16's loss scale in them, they may be over what fp16 can hold. In place, because this
            # is where a step's memory is highest.
            gradient.mul_(factors[:, None])
        return gradient, head_gradient, None


@torch.no_grad()
def score(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token -log p[target], fp32 [tokens], and whether no other token was likelier, bool [tokens]."""
    head = weight.to(hidden.dtype)
    losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    hits = torch.empty(len(targets), dtype=torch.bool, device=hidden.device)
    for chunk in chunks(len(targets), len(head)):
        at_target, total, _ = project(hidden[chunk], head, targets[chunk])
        losses[chunk], hits[chunk] = total.log()[:, 0] - at_target, at_target == 0
    return losses, hits


def chunks(tokens: int, vocabulary: int) -> list[slice]:
    rows = max(1, LOGITS_PER_CHUNK // vocabulary)
    return [slice(start, start + rows) for start in range(0, tokens, rows)]


def project(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The targets' scores less each token's highest one [tokens], the sums of the exponentials of such scores [tokens, 1], and
    these exponentials [tokens, vocabulary], all fp32."""
    scores = (hidden @ head.T).float()
    scores -= scores.amax(dim=1, keepdim=True)
    at_target = scores.gather(1, targets[:, None])[:, 0]
    total = scores.exp_().sum(dim=1, keepdim=True)
    return at_target, total, scores


def slopes(scores: Tensor, total: Tensor, targets: Tensor) -> Tensor:
    """p - onehot(target), fp32 [tokens, vocabulary], in the place of the scores."""
    scores /= total
    return scores.scatter_add_(1, targets[:, None], scores.new_full((1, 1), -1.0).expand(len(targets), 1))


def head_gradient_of(factors: Tensor, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """In the weight's format. The largest factor is multiplied last, for fp16's sake."""
    head, gradient = weight.to(hidden.dtype), torch.zeros_like(weight)
    if not len(targets):
        return gradient
    largest = factors.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    for chunk in chunks(len(targets), len(head)):
        _, total, scores = project(hidden[chunk], head, targets[chunk])
        sloping = slopes(scores, total, targets[chunk]).mul_((factors[chunk] / largest)[:, None])
        gradient += sloping.to(head.dtype).T @ hidden[chunk]
    return gradient.mul_(largest)
