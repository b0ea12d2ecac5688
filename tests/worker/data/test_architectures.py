import pytest

from worker.data.architectures import is_trainable


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text", "mistral", "phi3"])
def test_text_generation_models_can_be_trained(model_type):
    assert is_trainable(model_type)


@pytest.mark.parametrize("model_type", ["vit", "t5", "llama9", "", None])
def test_others_cannot(model_type):
    assert not is_trainable(model_type)
