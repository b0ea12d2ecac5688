"""The loss of direct preference optimisation (Rafailov and others, 2023, arXiv 2305.18290, equation 7)."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid


class Judged(NamedTuple):
    """Of pairs: their losses, fp32 [pairs], and the rewards of the chosen and the rejected answer, fp32 [pairs, 2]."""

    losses: Tensor
    rewards: Tensor


def judge(log_probs: Tensor, reference: Tensor, beta: float) -> Judged:
    """An answer's reward is beta times what its log-probability has gained over the reference, its loss -log sigmoid of the
    chosen one's lead. Both inputs are fp32 [pairs, 2], chosen first: log-probabilities summed over the answer's tokens."""
    rewards = beta * (log_probs - reference)
    return Judged(-logsigmoid(rewards[:, 0] - rewards[:, 1]), rewards)


def describe(rewards: Tensor) -> dict[str, float]:
    """Means over pairs, by their names in the metric points. A pair whose rewards are equal counts half as right."""
    leads = rewards[:, 0] - rewards[:, 1]
    right = (leads > 0).float() + (leads == 0).float() / 2
    return {
        "reward_chosen": rewards[:, 0].mean().item(),
        "reward_rejected": rewards[:, 1].mean().item(),
        "reward_margin": leads.mean().item(),
        "reward_accuracy": right.mean().item(),
    }
