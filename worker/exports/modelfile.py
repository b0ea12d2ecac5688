"""Ollama's Modelfile for a GGUF, with the chat template that the model was trained with.

Ollama's templates are Go's. What a template puts around the text of each role is found by asking it with marked texts; a Go
template is then put together from that. It is given only if it writes the same prompts as the original for all kinds of chats;
otherwise the Modelfile says that it has none.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

from jinja2 import TemplateError

from worker.data.formats.turns import Turn

Render = Callable[[list[Turn]], str]
"""Writes turns as the model reads them, up to where it begins to answer."""
MARK = "7f3c9ad"
"""A text that no template has in it."""
QUESTION, ANSWER, SYSTEM = ({"role": role, "content": f"The {role}."} for role in ("user", "assistant", "system"))
CHATS: list[list[Turn]] = [
    [*led, *([QUESTION, ANSWER] * answered), QUESTION] for answered, led in product((0, 1, 2), ([], [SYSTEM]))
]


@dataclass(frozen=True)
class Pieces:
    """What is written before and after the text of each role; where there is no system text; and where the answer begins."""

    around: dict[str, tuple[str, str]]
    unless_system: str
    ask: str

    def write(self, turns: list[Turn]) -> str:
        """What the Go template of these pieces writes."""
        texts = [self.around[turn["role"]][0] + turn["content"] + self.around[turn["role"]][1] for turn in turns]
        start = "" if turns[0]["role"] == "system" else self.unless_system
        return start + "".join(texts) + self.ask

    @property
    def actions(self) -> int:
        """How many actions its Go template has; braces in the texts would be more."""
        return 2 * bool(self.unless_system) + 3 + 2 * len(self.around)

    def as_go(self) -> str:
        """{{ .Content }} is the text of a turn, .System what system turns say."""
        roles = [
            f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        ]
        start = f"{{{{ if not .System }}}}{self.unless_system}{{{{ end }}}}" if self.unless_system else ""
        return f"{start}{{{{ range .Messages }}}}{''.join(roles)}{{{{ end }}}}{{{{ end }}}}{self.ask}"


def find_pieces(render: Render) -> Pieces | None:
    """None for a template that is more than such pieces, or refuses one of the roles."""
    question, answer, system = ({"role": role, "content": f"{MARK}-{role}"} for role in ("user", "assistant", "system"))
    try:
        whole = render([system, question, answer, question])
        unled = render([question, answer, question])
        before, after_system, *_ = whole.replace(question["content"], system["content"]).split(system["content"])
        first, between, last = unled.split(question["content"])
        into_answer, out_of_answer = between.split(answer["content"])
        pieces = divide(before, after_system, first, into_answer, out_of_answer, last)
        return pieces if all(pieces.write(chat) == render(chat) for chat in CHATS) else None
    except (TemplateError, ValueError):
        return None


def divide(system_start: str, system_end: str, first: str, into_answer: str, out_of_answer: str, ask: str) -> Pieces:
    """Says where one turn ends and the next begins: what follows a question is first its end, then the answer's beginning.

    Of several ways that write the same, the one that ends questions as it ends answers. ValueError when there is none.
    """
    fitting = []
    for cut, start in product(range(len(into_answer) + 1), range(len(out_of_answer) + 1)):
        end, beginning = into_answer[:cut], into_answer[cut:]
        stop, opening = out_of_answer[:start], out_of_answer[start:]
        if ask.startswith(end) and first.endswith(opening) and system_end.endswith(opening) and beginning and opening:
            around = {
                "system": (system_start, system_end.removesuffix(opening)),
                "user": (opening, end),
                "assistant": (beginning, stop),
            }
            pieces = Pieces(around, first.removesuffix(opening), ask.removeprefix(end))
            fitting.append((end == stop, -len(pieces.unless_system), cut, pieces))
    if not fitting:
        raise ValueError("the turns do not begin and end alike")
    return max(fitting, key=lambda item: item[:3])[3]


def write_modelfile(files: list[str], render: Render | None, stops: list[str]) -> str:
    """For the first of the GGUF files, which lie beside it; the others are named. `render` is None for a model that is asked
    without a template; `stops` are the texts of the tokens that end answers."""
    pieces = find_pieces(render) if render else None
    template = pieces.as_go() if pieces else None
    lines = [f"FROM ./{files[0]}", *(f"# FROM ./{name}" for name in files[1:])]
    if render is None:
        lines += ['TEMPLATE """{{ .Prompt }}"""']
    elif pieces is None or template is None or '"""' in template or template.count("{{") != pieces.actions:
        lines += [
            "# No TEMPLATE: the chat template of this model cannot be written as one of Ollama's that has the same prompts."
        ]
        lines += ["# llama.cpp's server reads the one in the file: llama-server --jinja -m " + files[0]]
    else:
        lines += [f'TEMPLATE """{template}"""']
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"
