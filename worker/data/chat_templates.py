"""The chat template that a model's conversations are written with, and what is to be known about it."""

import hashlib
from dataclasses import dataclass
from typing import Any

from worker.data.formats.turns import Conversation, Turn
from worker.data.rows import RowRefused

PLAIN = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token + '\\n\\n' }}"
    "{% else %}{{ raise_exception('there is no form for the role ' + message['role']) }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For a base model that has no template: no token that the model has not seen, and answers end with its own end of text."""

FAMILIES = {
    "llama3": "<|start_header_id|>",
    "qwen3": "<think>",
    "qwen2.5": "<tool_call>",
    "phi4": "<|im_sep|>",
    "chatml": "<|im_start|>",
    "gemma": "<start_of_turn>",
    "mistral": "[INST]",
    "phi3": "<|end|>",
}
"""What tells a family, tried in this order. Only the name hangs on it: masks are found without it."""
OF_CHATML = {"qwen3", "qwen2.5", "phi4"}


@dataclass(frozen=True)
class ChatTemplate:
    """`source` is `model` or `default`."""

    tokenizer: Any
    source: str
    text: str

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """The tokenizer's own; the tokenizer is given PLAIN if it has none."""
        if tokenizer.chat_template:
            return cls(tokenizer, "model", tokenizer.get_chat_template())
        tokenizer.chat_template = PLAIN
        return cls(tokenizer, "default", PLAIN)

    @property
    def family(self) -> str:
        if self.source == "default":
            return "plain"
        chatml = FAMILIES["chatml"] in self.text
        return next(
            (name for name, mark in FAMILIES.items() if mark in self.text and (chatml or name not in OF_CHATML)), "other"
        )

    def facts(self) -> dict[str, str]:
        digest = hashlib.sha256(self.text.encode()).hexdigest()
        return {"source": self.source, "family": self.family, "sha256": digest}

    def render(self, turns: list[Turn], tools: list[dict[str, Any]] | None, *, ask: bool = False) -> str:
        """The turns as the model reads them; with `ask`, up to where it begins to answer. Raises Jinja's TemplateError."""
        return self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=ask)

    def adapt(self, conversation: Conversation) -> Conversation:
        """The conversation with what this template writes, or RowRefused: it must leave nothing out in silence."""
        if conversation.tools and "tools" not in self.text:
            raise RowRefused("tools_not_taken", "The row declares tools, which the model's chat template does not write.")
        if all(len(turn) == 2 for turn in conversation.turns):
            return conversation
        return conversation._replace(turns=[self._adapt_turn(turn, at) for at, turn in enumerate(conversation.turns, 1)])

    def _adapt_turn(self, turn: Turn, number: int) -> Turn:
        if turn.get("reasoning_content") and "reasoning_content" not in self.text:
            reason = f"The model's chat template does not write the 'reasoning_content' of turn {number}."
            raise RowRefused("template_refused", f"{reason} Put it into the content.")
        writes_calls = "tool_calls" in self.text
        if "tool_calls" in turn and not writes_calls and "text" not in turn:
            reason = f"Turn {number} calls a tool, which the model's chat template does not write."
            raise RowRefused("tools_not_taken", f"{reason} Use a model whose template does, or write the call as text.")
        if "text" not in turn:
            return turn
        left_out = {"text"} if writes_calls else {"text", "tool_calls"}
        adapted = {key: value for key, value in turn.items() if key not in left_out}
        return adapted if writes_calls else adapted | {"content": turn["text"]}
