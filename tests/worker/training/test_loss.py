import pytest
import torch
from torch.nn.functional import cross_entropy

from worker.training import loss
from worker.training.loss import cross_entropies


@pytest.mark.parametrize("tokens_per_chunk", [1, 3, 7, 100])
def test_equals_the_plain_cross_entropy_and_its_gradient(monkeypatch, tokens_per_chunk):
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", tokens_per_chunk * 50)
    torch.manual_seed(0)
    hidden = torch.randn(7, 16, requires_grad=True)
    weight, targets = torch.randn(50, 16), torch.randint(0, 50, (7,))
    plain = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (expected,) = torch.autograd.grad(plain / 11, hidden)
    found = cross_entropies(hidden, weight, targets).sum()
    (found / 11).backward()
    torch.testing.assert_close(found, plain.detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(hidden.grad, expected, rtol=1e-5, atol=1e-7)


def test_a_trained_head_gets_its_gradient_too_whatever_each_token_is_multiplied_by(monkeypatch):
    monkeypatch.setattr(loss, "LOGITS_PER_CHUNK", 3 * 50)
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets, factors = torch.randint(0, 50, (7,)), torch.randn(7)
    expected = torch.autograd.grad(
        (cross_entropy(hidden @ weight.T, targets, reduction="none") * factors).sum(), [hidden, weight]
    )
    found = torch.autograd.grad((cross_entropies(hidden, weight, targets) * factors).sum(), [hidden, weight])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow():
    hidden, targets = torch.full((2, 4), 200.0), torch.tensor([0, 1])
    weight = torch.stack([torch.full((4,), 100.0), torch.full((4,), 99.0), torch.zeros(4)])
    assert cross_entropies(hidden, weight, targets).sum().item() == pytest.approx(800.0)


def test_an_fp16_gradient_survives_a_loss_scale_that_fp16_cannot_hold():
    torch.manual_seed(0)
    hidden = (torch.randn(3, 16) / 8).half().requires_grad_()
    weight, targets = (torch.randn(50, 16) / 8).half(), torch.tensor([1, 2, 3])
    (cross_entropies(hidden, weight, targets).sum() * 2.0**17).backward()
    exact = hidden.detach().float().requires_grad_()
    cross_entropy(exact @ weight.float().T, targets, reduction="sum").backward()
    assert hidden.grad.isfinite().all()
    torch.testing.assert_close(hidden.grad.float() / 2.0**17, exact.grad, rtol=0.02, atol=1e-3)


def test_without_targets_the_loss_is_zero_and_so_is_its_gradient():
    hidden = torch.randn(0, 16, requires_grad=True)
    found = cross_entropies(hidden, torch.randn(50, 16), torch.zeros(0, dtype=torch.int64)).sum()
    found.backward()
    assert found.item() == 0.0
    assert hidden.grad.shape == (0, 16)
