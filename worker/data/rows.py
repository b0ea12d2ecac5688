"""A row of a data set, and what is wrong with one."""

from typing import Any, NamedTuple


class Row(NamedTuple):
    """`line` is where the row starts in a JSONL or CSV file, else its number; both count from 1."""

    line: int
    fields: dict[str, Any]


class Refusal(NamedTuple):
    """A row that cannot be trained on. `code` is one of CODES, `reason` a sentence for the person who made the file."""

    line: int
    code: str
    reason: str


class RowRefused(Exception):
    """Raised while a row is normalised or tokenised; the reader of the rows knows the line."""

    def __init__(self, code: str, reason: str):
        super().__init__(reason)
        self.code, self.reason = code, reason

    def at(self, line: int) -> Refusal:
        return Refusal(line, self.code, self.reason)


CODES = {
    "invalid_json": "the line or element is not valid JSON",
    "invalid_text": "the text is not valid Unicode",
    "too_long": "the line is longer than a row may be",
    "wrong_columns": "a CSV record has more or fewer fields than the header",
    "wrong_type": "a value has another type than the format says",
    "unknown_format": "the row does not have the fields of the data set's format",
    "no_turns": "the conversation is empty",
    "unknown_role": "a turn's role is not system, user, assistant or tool",
    "misplaced_system": "a system turn comes after other turns",
    "misplaced_tool": "a tool's result comes where nothing called a tool",
    "unsupported_field": "a turn holds an image or sound, or a weight other than 0 and 1",
    "repeated_answer": "an answer follows right after an answer",
    "equal_answers": "the chosen and the rejected answer are the same",
    "different_prompts": "the chosen and the rejected answer do not answer the same prompt",
    "no_question": "the conversation starts with an answer",
    "no_answer": "there is no answer, or the last turn is not one",
    "empty_answer": "an answer has no text",
    "empty_text": "the text is empty",
    "template_refused": "the model's chat template does not accept the conversation",
    "tools_not_taken": "the model's chat template does not write tools or their calls",
    "unstable_tokens": "the tokenizer joins the end of a prompt with the start of its answer",
    "nothing_trained": "no token of the row would be trained",
}
