"""Which repositories hold weights that are already quantised, and what their 16-bit original is called."""

import re

ENDING = re.compile(
    r"([-_.](unsloth[-_.])?(bnb|gptq|awq|gguf|exl2|exl3|mlx|hqq|aqlm|fp8|nvfp4|mxfp4|int[248]|[23456]bit|8bit|w4a16|w8a8|w8a16|q[2-8](_[a-z0-9]+)*)"
    r"([-_.](bnb|int[248]|[234568]bit|128g|dynamic|marlin|quantized))*)$",
    re.IGNORECASE,
)
REPACKERS = frozenset(
    {
        "thebloke",
        "bartowski",
        "mlx-community",
        "lmstudio-community",
        "casperhansen",
        "redhatai",
        "neuralmagic",
        "turboderp",
        "mradermacher",
    }
)
"""Owners who publish other people's models quantised, so that the original is not theirs."""


def is_quantised(repo: str) -> bool:
    return ENDING.search(repo) is not None


def find_original(repo: str) -> str | None:
    """The 16-bit repository, where the naming tells it: `unsloth/X-bnb-4bit` is made from `unsloth/X`."""
    original = repo
    while (found := ENDING.search(original)) is not None:
        original = original[: found.start()]
    owner = repo.split("/")[0].lower() if "/" in repo else ""
    return original if original != repo and owner not in REPACKERS else None
