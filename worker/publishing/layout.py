"""Where in a repository an artifact goes: where peft, transformers, llama.cpp and Ollama look for it."""

from collections.abc import Collection, Sequence

from worker.publishing import RepositoryFile
from worker.stages import StoredFile

CARD = "README.md"


def arrange(files: Sequence[StoredFile], kinds: Collection[str]) -> list[RepositoryFile]:
    """Those of the files that belong to the kinds, by the folder that they are in among the artifacts.

    All lie at the top, an adapter with its tokenizer; but an adapter beside the model that it was merged into, which has the
    tokenizer already, has a folder of its own, for transformers would apply it a second time. A card of the merged model gives
    way to the repository's.
    """
    folders = {*kinds, "tokenizer"} if "adapter" in kinds and "merged" not in kinds else {*kinds}
    placed: dict[str, RepositoryFile] = {}
    for file in files:
        folder, _, path = file.name.partition("/")
        if folder in folders and path != CARD:
            place = file.name if folder == "adapter" and "merged" in kinds else path
            placed.setdefault(place, RepositoryFile(place, file.path, file.bytes, file.sha256))
    return list(placed.values())
