"""The tokenizer that a job offers, loaded from its own folder as a user would."""

from tiny_tokenizer import CHATML, make_tokenizer
from transformers import AutoTokenizer

from worker.exports.tokenizer_files import export

CHAT = [{"role": "user", "content": "What is it?"}]


def test_it_is_loaded_by_itself_and_asks_as_in_training(tmp_path):
    base, prepared, out = (tmp_path / name for name in ("base", "prepare", "out"))
    for folder in (base, prepared, out):
        folder.mkdir()
    made = make_tokenizer(template=None)
    made.save_pretrained(base)
    for name in ("config.json", "model.safetensors", "tokenizer_of_theirs.py"):
        (base / name).write_text("{}")
    (prepared / "chat_template.jinja").write_text(CHATML)
    files = export(base, prepared, out)
    assert {file.kind for file in files} == {"tokenizer"}
    names = {file.name for file in files}
    assert names >= {"tokenizer/tokenizer.json", "tokenizer/chat_template.jinja"}
    assert not [name for name in names if name.endswith((".py", ".safetensors", "/config.json"))]
    loaded = AutoTokenizer.from_pretrained(out / "tokenizer")
    asked = loaded.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert asked == made.apply_chat_template(CHAT, chat_template=CHATML, add_generation_prompt=True, tokenize=False)
    assert loaded(asked)["input_ids"] == made(asked)["input_ids"]
