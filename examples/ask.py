"""Puts a question to a GGUF file: llama.cpp answers on the CPU, with the file's chat template, always by the likeliest token.

python examples/ask.py model-q8_0.gguf "What is the capital of France?"
"""

import argparse
import os
import sys
from pathlib import Path

import torch  # noqa: F401 — brings the OpenMP library that xllamacpp needs and a bare system lacks
import xllamacpp

CONTEXT_TOKENS = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description="Puts a question to a GGUF file and prints llama.cpp's answer.")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("question")
    parser.add_argument("--system", help="a system prompt; without it the chat template's own, where it has one")
    parser.add_argument("--max-tokens", type=int, default=256)
    arguments = parser.parse_args()
    messages = [{"role": "user", "content": arguments.question}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    try:
        print(ask(arguments.gguf, messages, arguments.max_tokens))
    except RuntimeError as problem:
        sys.exit(f"{arguments.gguf}: {problem}")


def ask(gguf: Path, messages: list[dict[str, str]], max_tokens: int) -> str:
    """The answer. RuntimeError when llama.cpp cannot load the file or refuses the messages."""
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.n_ctx = CONTEXT_TOKENS
    params.n_parallel = 1
    params.use_jinja = True
    params.warmup = False
    params.verbosity = -1
    # Waiting threads spin: on cores that others need too, one thread is many times faster than all.
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = max(1, (os.cpu_count() or 1) // 2)
    request = {"messages": messages, "max_tokens": max_tokens, "temperature": 0.0}
    answer = xllamacpp.Server(params).handle_chat_completions(request)
    if "choices" not in answer:
        raise RuntimeError(answer.get("error", answer).get("message", "no answer"))
    return answer["choices"][0]["message"]["content"].strip()


if __name__ == "__main__":
    main()
