"""Which architectures can be trained: read from the source of transformers' table, because importing it would import torch."""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

MODULE = "models/auto/modeling_auto.py"
TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


def is_trainable(model_type: Any) -> bool:
    """Whether the installed transformers has a causal language model for a config's `model_type`."""
    return model_type in trainable_types()


@cache
def trainable_types() -> frozenset[str]:
    """LookupError if the table is not where it was."""
    package = importlib.util.find_spec("transformers")
    assert package is not None and package.origin is not None
    source = (Path(package.origin).parent / MODULE).read_text(encoding="utf-8")
    for statement in ast.parse(source).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == TABLE:
            pairs = ast.literal_eval(statement.value.args[0])  # type: ignore[attr-defined]  # of OrderedDict
            return frozenset(model_type for model_type, _ in pairs)
    raise LookupError(f"transformers has no {TABLE}")
