import re

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tiny_tokenizer import CHATML, HIDING, SPACIOUS, STRICT

from worker.data.chat_templates import PLAIN
from worker.exports.modelfile import write_modelfile

SMOLLM = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\nBe good<|im_end|>\n{% endif %}",
)
LLAMA = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
SYSTEM, USER, ANSWER = ({"role": role, "content": f"I am the {role}."} for role in ("system", "user", "assistant"))
CHATS = [[USER], [SYSTEM, USER], [USER, ANSWER, USER], [SYSTEM, USER, ANSWER, USER, ANSWER, USER]]
FORM = re.compile(
    r"(?:\{\{ if not \.System \}\}(?P<start>.*?)\{\{ end \}\})?\{\{ range \.Messages \}\}(?P<turns>.*)"
    r"\{\{ end \}\}\{\{ end \}\}(?P<ask>.*)",
    re.DOTALL,
)


def jinja(template: str):
    def refuse(reason: str) -> None:
        raise ValueError(reason)

    made = ImmutableSandboxedEnvironment().from_string(template)
    return lambda turns: made.render(messages=turns, add_generation_prompt=True, eos_token="</s>", raise_exception=refuse)


def write_as_ollama(template: str, turns: list[dict]) -> str:
    """What Go makes of the part of its template language that a Modelfile of ours has."""
    form = FORM.fullmatch(template)
    cases = re.split(r"\{\{ (?:else )?if eq \.Role \"(\w+)\" \}\}", form["turns"])[1:]
    texts = dict(zip(cases[::2], cases[1::2], strict=True))
    start = (form["start"] or "") if all(turn["role"] != "system" for turn in turns) else ""
    return start + "".join(texts[t["role"]].replace("{{ .Content }}", t["content"]) for t in turns) + form["ask"]


@pytest.mark.parametrize("template", [CHATML, SMOLLM, SPACIOUS, LLAMA, PLAIN, HIDING])
def test_the_go_template_writes_the_prompts_of_training(template):
    modelfile = write_modelfile(["m-q8_0.gguf", "m-f16.gguf"], jinja(template), ["<|im_end|>"])
    assert modelfile.startswith("FROM ./m-q8_0.gguf\n# FROM ./m-f16.gguf\n")
    assert modelfile.endswith('PARAMETER stop "<|im_end|>"\n')
    go = re.search('TEMPLATE """(.*)"""', modelfile, re.DOTALL)[1]
    for chat in CHATS:
        assert write_as_ollama(go, chat) == jinja(template)(chat)


def test_turns_end_where_one_expects():
    assert '"user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n{{ else' in write_modelfile(["m.gguf"], jinja(CHATML), [])


@pytest.mark.parametrize("template", [STRICT, CHATML.replace("im_end", "{{im_end"), CHATML + '"' * 3])
def test_what_cannot_be_said_in_go_is_left_out_and_said(template):
    modelfile = write_modelfile(["m.gguf"], jinja(template), [])
    assert 'TEMPLATE "' not in modelfile and "# No TEMPLATE" in modelfile


def test_a_model_that_is_asked_without_a_template():
    assert 'TEMPLATE """{{ .Prompt }}"""' in write_modelfile(["m.gguf"], None, [])
