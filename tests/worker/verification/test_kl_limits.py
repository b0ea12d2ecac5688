"""What a file may lose, and when the adapter is to blame for it."""

import pytest

from app.settings import MOST_KL
from worker.exports.ggml import Q5_0, Q5_1, Q5_K, Q6_K, Q8_0
from worker.exports.gguf_header import Header, Slot, placed
from worker.verification.divergence import Divergence
from worker.verification.gguf_file import check_divergence, kind_of

FIGURES = {"kl": 0.01, "perplexity": 5.0, "reference_perplexity": 5.0, "top1": 0.9, "tokens": 200, "adapter_error": 0.02}


@pytest.mark.parametrize(
    ("name", "kinds", "expected"),
    [
        ("x-q5_k_m", [Q5_K, Q5_K, Q6_K], "q5_k_m"),
        ("x-q5_k_m", [Q5_1, Q5_1, Q5_K], "q5_1"),
        ("x-q4_k_m", [Q5_0, Q5_0, Q6_K], "q5_0"),
        ("x-q6_k", [Q8_0, Q8_0, Q6_K], "q6_k"),
    ],
)
def test_the_limit_is_that_of_the_type_that_most_weights_are_of(tmp_path, name, kinds, expected):
    path = tmp_path / f"{name}.gguf"
    slots = placed([Slot(f"{number}", (256, 256), kind) for number, kind in enumerate(kinds)])
    path.write_bytes(Header({}, slots).to_bytes())
    assert kind_of(path) == expected and expected in MOST_KL
    path.write_bytes(path.read_bytes()[:40])
    assert kind_of(path) == name.rpartition("-")[2]


@pytest.mark.parametrize(
    ("adapter", "share", "is_old", "is_wrong"),
    [
        (2.0, 0.6, True, True),
        (1.6, 0.35, True, False),
        (1.6, 0.35, False, True),
        (0.6, 0.04, False, False),
        (1.1, 0.9, False, False),
    ],
)
def test_an_old_type_that_leans_to_what_was_trained_is_no_adapter_too_many(adapter, share, is_old, is_wrong):
    found = Divergence(**FIGURES, adapter=adapter, adapter_share=share)
    assert bool(list(check_divergence(found, 0.1, "q5_1" if is_old else "q5_k_m"))) is is_wrong
