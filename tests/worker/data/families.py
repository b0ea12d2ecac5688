"""The chat templates of the common families, written anew to the public form of each, and a small tokenizer for each."""

from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

WORDS = (
    r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
TEXT = (
    "You are brief. Why is the sky blue? Because it is. And the sea? It mirrors the sky. weather Oslo 4 degrees User:\n\n" * 20
)

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- if tools is not none and tools %}
    {%- set first = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}{{- first + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' or message.role == 'ipython' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + (message.content | tojson) + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

CHATML = """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

SMOLLM = """{% for message in messages %}
{%- if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

QWEN_SYSTEM = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}{%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}{{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}{{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}%ELSE%
{%- endif %}"""
QWEN_CALLS = """{%- for call in message.tool_calls %}{%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\\n</tool_call>' }}
        {%- endfor %}"""
QWEN_RESULT = """{%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}"""

QWEN_2_5 = (
    QWEN_SYSTEM.replace("%ELSE%", "{%- else %}{{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}")
    + """
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first)
        or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>assistant' }}{%- if message.content %}{{- '\\n' + message.content }}{%- endif %}
        """
    + QWEN_CALLS
    + """{{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        """
    + QWEN_RESULT
    + """
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
)

QWEN_3 = (
    QWEN_SYSTEM.replace("%ELSE%", "")
    + """
{%- set ns = namespace(looking=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = messages|length - 1 - loop.index0 %}
    {%- if ns.looking and message.role == "user" %}{%- set ns.looking = false %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content %}{%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last and (loop.last or reasoning) %}
            {{- '<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{%- endif %}
        {%- if message.tool_calls %}"""
    + QWEN_CALLS
    + """{%- endif %}{{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        """
    + QWEN_RESULT
    + """
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
)

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set prefix = messages[0]['content'] + '\\n\\n' %}{%- set messages = messages[1:] %}
{%- else %}{%- set prefix = "" %}{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {{- (prefix if loop.first else "") + message['content'] | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set messages = messages[1:] %}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- elif message["role"] == "assistant" %}{{- " " + message["content"]|trim + eos_token}}
    {%- else %}{{- raise_exception("Only user and assistant roles are supported") }}{%- endif %}
{%- endfor %}"""

PHI_3 = """{% for message in messages %}
{%- if message['role'] == 'system' %}{{ '<|system|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'user' %}{{ '<|user|>\\n' + message['content'] + '<|end|>\\n' }}
{%- elif message['role'] == 'assistant' %}{{ '<|assistant|>\\n' + message['content'] + '<|end|>\\n' }}
{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""

PHI_4 = """{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content'] + '<|im_end|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"""


@dataclass(frozen=True)
class Family:
    """`special` are all special tokens; `adds_bos` says whether the tokenizer puts a BOS before every text by itself. `text` is
    how the family writes CHAT of the test, and `answers` what a model of it says in it, one by one."""

    template: str | None
    special: tuple[str, ...]
    bos: str | None
    eos: str
    adds_bos: bool
    text: str
    answers: tuple[str, ...] = ("Because it is.", "It mirrors the sky.")
    stop: str = ""
    documents: int = 1
    pad: str | None = None


FAMILIES = {
    "llama3": Family(
        LLAMA_3,
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        True,
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\nYou are brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nBecause it is.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd the sea?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nIt mirrors the sky.<|eot_id|>",
    ),
    "chatml": Family(
        CHATML,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        False,
        "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nBecause it is.<|im_end|>\n<|im_start|>user\nAnd the sea?<|im_end|>\n"
        "<|im_start|>assistant\nIt mirrors the sky.<|im_end|>\n",
        pad="<|im_end|>",
    ),
    "smollm": Family(
        SMOLLM,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        "<|im_start|>",
        "<|im_end|>",
        False,
        "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nBecause it is.<|im_end|>\n<|im_start|>user\nAnd the sea?<|im_end|>\n"
        "<|im_start|>assistant\nIt mirrors the sky.<|im_end|>\n",
        pad="<|im_end|>",
    ),
    "qwen2.5": Family(
        QWEN_2_5,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        False,
        "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nBecause it is.<|im_end|>\n<|im_start|>user\nAnd the sea?<|im_end|>\n"
        "<|im_start|>assistant\nIt mirrors the sky.<|im_end|>\n",
        pad="<|endoftext|>",
    ),
    "qwen3": Family(
        QWEN_3,
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        False,
        "<|im_start|>system\nYou are brief.<|im_end|>\n<|im_start|>user\nWhy is the sky blue?<|im_end|>\n"
        "<|im_start|>assistant\nBecause it is.<|im_end|>\n<|im_start|>user\nAnd the sea?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nIt mirrors the sky.<|im_end|>\n",
        answers=("<think>\n\n</think>\n\nBecause it is.", "<think>\n\n</think>\n\nIt mirrors the sky."),
        documents=2,
        pad="<|endoftext|>",
    ),
    "gemma": Family(
        GEMMA,
        ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<eos>",
        True,
        "<bos><start_of_turn>user\nYou are brief.\n\nWhy is the sky blue?<end_of_turn>\n"
        "<start_of_turn>model\nBecause it is.<end_of_turn>\n<start_of_turn>user\nAnd the sea?<end_of_turn>\n"
        "<start_of_turn>model\nIt mirrors the sky.<end_of_turn>\n",
        stop="<end_of_turn>",
        pad="<pad>",
    ),
    "mistral": Family(
        MISTRAL,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
        True,
        "<s>[INST] Why is the sky blue?[/INST] Because it is.</s>[INST] And the sea?[/INST] It mirrors the sky.</s>",
        answers=(" Because it is.", " It mirrors the sky."),
        documents=2,
    ),
    "phi3": Family(
        PHI_3,
        ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<s>",
        "<|endoftext|>",
        False,
        "<|system|>\nYou are brief.<|end|>\n<|user|>\nWhy is the sky blue?<|end|>\n<|assistant|>\nBecause it is.<|end|>\n"
        "<|user|>\nAnd the sea?<|end|>\n<|assistant|>\nIt mirrors the sky.<|end|>\n<|endoftext|>",
        stop="<|end|>",
        pad="<|endoftext|>",
    ),
    "phi4": Family(
        PHI_4,
        ("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "<|endoftext|>",
        "<|im_end|>",
        False,
        "<|im_start|>system<|im_sep|>You are brief.<|im_end|><|im_start|>user<|im_sep|>Why is the sky blue?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>Because it is.<|im_end|><|im_start|>user<|im_sep|>And the sea?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>It mirrors the sky.<|im_end|>",
    ),
    "plain": Family(
        None,
        ("<s>", "</s>"),
        "<s>",
        "</s>",
        True,
        "You are brief.\n\nUser: Why is the sky blue?\n\nAssistant: Because it is.</s>\n\n"
        "User: And the sea?\n\nAssistant: It mirrors the sky.</s>\n\n",
        answers=(" Because it is.", " It mirrors the sky."),
        pad="</s>",
    ),
}


@cache
def trained(special: tuple[str, ...]) -> str:
    tokenizer = Tokenizer(models.BPE())
    # As Llama 3, Qwen and Phi 4 cut texts, up to how many digits they take at once.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [AddedToken(token, special=True) for token in special]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([TEXT], trainer)
    return tokenizer.to_str()


def make_family_tokenizer(family: Family):
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(trained(family.special))
    if family.adds_bos:
        bos = (family.bos, backend.token_to_id(family.bos))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", pair=f"{family.bos} $A $B", special_tokens=[bos]
        )
    bos = family.bos if family.bos in family.special else None
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=family.eos, pad_token=family.pad)
    tokenizer.chat_template = family.template
    return tokenizer
