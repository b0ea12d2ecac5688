import json

import pytest

from worker.data import built_in_model
from worker.data.gguf_weights import read_gguf


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory):
    """The built-in model's tokenizer with a config: all of a base model that this stage reads, beside the weights' presence."""
    folder = tmp_path_factory.mktemp("models") / "small"
    folder.mkdir()
    metadata, _ = read_gguf(built_in_model.source_file())
    for name, content in built_in_model.json_files(metadata).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(metadata["tokenizer.chat_template"])
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder.parent
