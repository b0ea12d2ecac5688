"""A small byte-level tokenizer, trained on the spot, under one of several chat templates."""

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPACIOUS = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n\n'").replace(
    "['role'] + '\n'", "['role'] + '\n\n'"
)
"""Two line breaks are one token at the end of a prompt, and this tokenizer makes them two where a word follows."""
WITH_BOS = "{{ bos_token }}" + CHATML
HIDING = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\nTHOUGHT '")
"""Asks for an answer in words that are gone once it is there."""
PLAIN = (
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + CHATML
)
SPECIAL = ["<s>", "<|im_start|>", "<|im_end|>"]
BOS, START, STOP = range(3)
TEXT = "the quick brown fox jumps over the lazy dog: what is it? It is   a dog.\n\n\n    assistant user system 0123456789 " * 50


@cache
def trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer.to_str()


def make_tokenizer(template: str | None = CHATML, *, adds_bos: bool = False):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(trained())
    steps = [processors.ByteLevel(trim_offsets=True)]
    if adds_bos:
        steps.append(processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]))
    backend.post_processor = processors.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    tokenizer.chat_template = template
    return tokenizer
