"""llama.cpp, as users run it, asked for tokens and logits: its C functions, from the extension module of xllamacpp.

The package's own interface gives no logits of a prompt, but its module exports llama.cpp's functions. Their declarations are in
llama.cpp's include/llama.h. Structures are passed as the library made them: only the first three numbers of a context's, the
sizes, are written, and then read back from the context.
"""

import ctypes
import importlib.util
import os
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch  # noqa: F401 — brings the OpenMP library that the module needs and a bare system lacks

Pointer = ctypes.c_void_p
Silence = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, Pointer)
SILENCE = Silence(lambda level, text, data: None)


class CannotLoad(Exception):
    """llama.cpp refuses the file."""


class Params(ctypes.Structure):
    """Room for any of llama.cpp's structures of parameters: the callee takes from it what it knows of."""

    _fields_ = [("content", ctypes.c_uint8 * 1024)]


class Batch(ctypes.Structure):
    """llama_batch. Without positions and sequences the tokens continue sequence 0."""

    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", Pointer),
        ("embd", Pointer),
        ("pos", Pointer),
        ("n_seq_id", Pointer),
        ("seq_id", Pointer),
        ("logits", Pointer),
    ]


SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "llama_log_set": (None, [Silence, Pointer]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Params, []),
    "llama_model_load_from_file": (Pointer, [ctypes.c_char_p, Params]),
    "llama_model_free": (None, [Pointer]),
    "llama_model_get_vocab": (Pointer, [Pointer]),
    "llama_model_chat_template": (ctypes.c_char_p, [Pointer, ctypes.c_char_p]),
    "llama_vocab_n_tokens": (ctypes.c_int32, [Pointer]),
    "llama_vocab_bos": (ctypes.c_int32, [Pointer]),
    "llama_vocab_eos": (ctypes.c_int32, [Pointer]),
    "llama_vocab_is_eog": (ctypes.c_bool, [Pointer, ctypes.c_int32]),
    "llama_vocab_get_add_bos": (ctypes.c_bool, [Pointer]),
    "llama_tokenize": (
        ctypes.c_int32,
        [Pointer, ctypes.c_char_p, ctypes.c_int32, Pointer, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool],
    ),
    "llama_context_default_params": (Params, []),
    "llama_init_from_model": (Pointer, [Pointer, Params]),
    "llama_n_ctx": (ctypes.c_uint32, [Pointer]),
    "llama_n_batch": (ctypes.c_uint32, [Pointer]),
    "llama_n_ubatch": (ctypes.c_uint32, [Pointer]),
    "llama_set_n_threads": (None, [Pointer, ctypes.c_int32, ctypes.c_int32]),
    "llama_get_memory": (Pointer, [Pointer]),
    "llama_memory_clear": (None, [Pointer, ctypes.c_bool]),
    "llama_decode": (ctypes.c_int32, [Pointer, Batch]),
    "llama_get_logits": (Pointer, [Pointer]),
    "llama_free": (None, [Pointer]),
    "llama_adapter_lora_init": (Pointer, [Pointer, ctypes.c_char_p]),
    "llama_set_adapters_lora": (ctypes.c_int32, [Pointer, Pointer, ctypes.c_size_t, Pointer]),
}


def count_threads() -> int:
    """Half of the cores: where others are at work too, more threads wait for each other longer than they compute."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // 2)


@cache
def library() -> ctypes.CDLL:
    """llama.cpp, silenced. RuntimeError when the installed package does not export what is needed."""
    found = importlib.util.find_spec("xllamacpp")
    folder = Path(found.origin).parent if found and found.origin else Path("xllamacpp")
    module = next(folder.glob("xllamacpp*.so"), None)
    if module is None:
        raise RuntimeError("the package xllamacpp has no extension module here")
    llama = ctypes.CDLL(str(module))
    for name, (result, arguments) in SIGNATURES.items():
        if not hasattr(llama, name):
            raise RuntimeError(f"the installed xllamacpp does not export {name}")
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    llama.llama_log_set(SILENCE, None)
    llama.llama_backend_init()
    return llama


class Llama:
    """A GGUF file in llama.cpp, on the CPU. Close it, or use it as a context."""

    def __init__(self, path: Path):
        """CannotLoad for a file that llama.cpp refuses: cut off, not a model, of an architecture that it does not know."""
        self._library = library()
        self._model = self._library.llama_model_load_from_file(str(path).encode(), self._library.llama_model_default_params())
        if not self._model:
            raise CannotLoad(f"llama.cpp cannot load {path.name}")
        self._vocabulary = self._library.llama_model_get_vocab(self._model)
        template = self._library.llama_model_chat_template(self._model, None)
        self.template = template.decode() if template is not None else None
        """The file's chat template."""
        self.tokens = self._library.llama_vocab_n_tokens(self._vocabulary)
        self.bos = self._library.llama_vocab_bos(self._vocabulary)
        self.eos = self._library.llama_vocab_eos(self._vocabulary)
        self.adds_bos = self._library.llama_vocab_get_add_bos(self._vocabulary)

    def __enter__(self) -> "Llama":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._library.llama_model_free(self._model)
        self._model = None

    def tokenize(self, text: str) -> list[int]:
        """As llama.cpp's server does with a prompt: special tokens are read, and a BOS goes in front if the file says so."""
        encoded = text.encode()
        most = len(encoded) + 8
        ids = (ctypes.c_int32 * most)()
        count = self._library.llama_tokenize(self._vocabulary, encoded, len(encoded), ids, most, True, True)
        if count < 0:
            raise RuntimeError(f"llama.cpp makes more than {most} tokens of {len(encoded)} bytes")
        return ids[:count]

    def stops_at(self, token: int) -> bool:
        """Whether llama.cpp ends an answer at this token."""
        return self._library.llama_vocab_is_eog(self._vocabulary, token)

    def logits(self, documents: list[np.ndarray]) -> Iterator[np.ndarray]:
        """Of each document, int32 [n], by itself: float32 [n, tokens]. What is yielded is valid until the next one."""
        longest = max(map(len, documents))
        context = self._open(longest)
        try:
            for document in documents:
                yield self._decode(context, document)
        finally:
            self._library.llama_free(context)

    def _open(self, longest: int) -> int:
        params = self._library.llama_context_default_params()
        struct.pack_into("=3I", params.content, 0, longest, longest, longest)  # n_ctx, n_batch, n_ubatch
        context = self._library.llama_init_from_model(self._model, params)
        if not context:
            raise MemoryError("llama.cpp has no memory for the file's context")
        sizes = [getattr(self._library, name)(context) for name in ("llama_n_ctx", "llama_n_batch", "llama_n_ubatch")]
        if min(sizes) < longest or max(sizes[1:]) > sizes[0]:
            self._library.llama_free(context)
            raise RuntimeError(f"the installed xllamacpp takes other parameters than those of llama.h: it read {sizes}")
        self._library.llama_set_n_threads(context, count_threads(), count_threads())
        return context

    def _decode(self, context: int, document: np.ndarray) -> np.ndarray:
        self._library.llama_memory_clear(self._library.llama_get_memory(context), True)
        tokens = np.ascontiguousarray(document, dtype=np.int32)
        wanted = np.ones(len(tokens), dtype=np.int8)
        batch = Batch(n_tokens=len(tokens), token=tokens.ctypes.data, logits=wanted.ctypes.data)
        if status := self._library.llama_decode(context, batch):
            raise RuntimeError(f"llama.cpp could not compute {len(tokens)} tokens: {status}")
        address = ctypes.cast(self._library.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(address, (len(tokens), self.tokens))


class Adapted(Llama):
    """A model with an adapter on it that counts `times` as much as it was trained to; -1 takes away what was merged."""

    def __init__(self, path: Path, adapter: Path, times: float = 1.0):
        """CannotLoad also for an adapter that llama.cpp refuses, or that is not for this model."""
        super().__init__(path)
        self._times = times
        self._adapter = self._library.llama_adapter_lora_init(self._model, str(adapter).encode())
        if not self._adapter:
            self.close()
            raise CannotLoad(f"llama.cpp cannot load {adapter.name}")

    def _open(self, longest: int) -> int:
        context = super()._open(longest)
        adapters, times = (Pointer * 1)(self._adapter), (ctypes.c_float * 1)(self._times)
        if status := self._library.llama_set_adapters_lora(context, adapters, 1, times):
            self._library.llama_free(context)
            raise RuntimeError(f"llama.cpp could not use the adapter: {status}")
        return context
