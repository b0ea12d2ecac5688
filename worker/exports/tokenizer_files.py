"""The tokenizer that the model was trained with, and the chat template that it was asked with."""

import shutil
from pathlib import Path

from worker.exports import companions
from worker.stages import OutputFile


def export(base: Path, prepared: Path, out: Path) -> list[OutputFile]:
    """Copies what AutoTokenizer reads from the base's folder to `out/tokenizer`. `prepared` is where `prepare` has left the
    chat template of a base without one."""
    into = out / "tokenizer"
    into.mkdir()
    companions.copy_files(base, into, [*companions.TOKENIZER, *companions.CHAT_TEMPLATES])
    copy_template(prepared, into)
    files = sorted(path for path in into.rglob("*") if path.is_file())
    return [OutputFile.of(out, path, name=path.relative_to(out).as_posix(), kind="tokenizer") for path in files]


def copy_template(prepared: Path, into: Path) -> None:
    """The chat template that `prepare` gave a base model without one: the model must be asked as it was trained."""
    template = prepared / "chat_template.jinja"
    if template.exists():
        shutil.copyfile(template, into / template.name)
