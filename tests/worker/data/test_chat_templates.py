import numpy as np
import pytest
from families import FAMILIES, make_family_tokenizer

from worker.data.chat_templates import PLAIN
from worker.data.formats.turns import Conversation, Preference
from worker.data.masks import Encoder
from worker.data.rows import RowRefused

SYSTEM = {"role": "system", "content": "You are brief."}
CHAT = [
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Because it is."},
    {"role": "user", "content": "And the sea?"},
    {"role": "assistant", "content": "It mirrors the sky."},
]
FULL = Conversation([SYSTEM, *CHAT])
PLAIN_CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
CALLS = [
    CHAT[0],
    {"role": "assistant", "content": "", "tool_calls": [PLAIN_CALL]},
    {"role": "tool", "content": "4 degrees"},
    {"role": "assistant", "content": "It is 4 degrees."},
]


def make_encoder(family, *, assistant_only=True):
    tokenizer = make_family_tokenizer(family)
    return Encoder(tokenizer, assistant_only=assistant_only, eos_token_ids={tokenizer.eos_token_id})


def encode(encoder, sample):
    [documents] = encoder.encode([sample])
    return documents


def trained_texts(tokenizer, document):
    edges = np.flatnonzero(np.diff(np.concatenate([[0], document.trained.astype(int), [0]])))
    return [tokenizer.decode(document.input_ids[start:end]) for start, end in edges.reshape(-1, 2)]


def reference(tokenizer, conversation, **options):
    """The ids that transformers gives, with the one BOS that its tokenizer would put before a text."""
    if tokenizer.chat_template is None:
        tokenizer.chat_template = PLAIN
    ids = tokenizer.apply_chat_template(conversation.turns, tools=conversation.tools, return_dict=False, **options)
    starts = tokenizer("a")["input_ids"][:-1]
    return ids if ids[: len(starts)] == starts else starts + ids


@pytest.mark.parametrize("name", FAMILIES)
def test_the_template_of_this_test_writes_the_public_form(name):
    tokenizer = make_family_tokenizer(FAMILIES[name])
    text = tokenizer.apply_chat_template(FULL.turns, tokenize=False, chat_template=tokenizer.chat_template or PLAIN)
    assert text == FAMILIES[name].text


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [True, False])
def test_tokens_are_those_of_apply_chat_template(name, system):
    """Each document is the conversation up to one of its answers, as transformers writes it."""
    family = FAMILIES[name]
    conversation = FULL if system else Conversation(CHAT)
    documents = encode(make_encoder(family), conversation)
    wholes = [
        reference(make_family_tokenizer(family), Conversation(conversation.turns[: stop + len(conversation.turns) - 4]))
        for stop in (2, 4)
    ]
    ids = [document.input_ids.tolist() for document in documents]
    if name == "mistral":
        if system:  # written by its template before the newest question only, and so in no whole conversation
            prompts = [
                reference(make_family_tokenizer(family), Conversation(FULL.turns[:stop]), add_generation_prompt=True)
                for stop in (2, 4)
            ]
            assert [one[: len(prompt)] for one, prompt in zip(ids, prompts, strict=True)] == prompts
        else:
            assert ids == wholes[1:]
    else:
        assert ids == wholes[2 - family.documents :]


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_what_the_model_says_when_it_is_asked(name):
    family = FAMILIES[name]
    encoder = make_encoder(family)
    documents = encode(encoder, FULL)
    tokenizer = make_family_tokenizer(family)
    stop = family.stop or family.eos
    said = [text for document in documents for text in trained_texts(tokenizer, document)]
    ends = [answer + stop for answer in family.answers]
    if name == "phi3":  # its template ends every conversation with an end of text of its own
        ends[1] += "\n<|endoftext|>"
    assert said == ends
    assert len(documents) == family.documents
    for index in (2, 4):
        prompt, _ = encoder.encode_prompt(FULL, FULL.turns[:index])
        assert any(
            document.input_ids[: len(prompt)].tolist() == prompt and document.trained[len(prompt)] for document in documents
        )
        assert tokenizer.convert_tokens_to_ids(stop) in encoder.stop_token_ids
    assert encoder.unstopped == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_exactly_one_bos(name):
    family = FAMILIES[name]
    if family.bos not in family.special or name == "smollm":
        pytest.skip("a family without a BOS, or whose BOS begins each turn")
    encoder = make_encoder(family)
    bos = make_family_tokenizer(family).bos_token_id
    wanted = 0 if name == "phi4" else 1  # its BOS is its end of text, which neither its template nor its tokenizer writes
    for document in encode(encoder, FULL):
        assert document.input_ids.tolist().count(bos) == wanted
    assert encoder.encode_prompt(FULL, FULL.turns[:2])[0].count(bos) == wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pad_token_that_is_the_stop_token_hides_nothing(name):
    family = FAMILIES[name]
    tokenizer = make_family_tokenizer(family)
    stop = tokenizer.convert_tokens_to_ids(family.stop or family.eos)
    tokenizer.pad_token = family.stop or family.eos
    encoder = Encoder(tokenizer, assistant_only=True, eos_token_ids={tokenizer.eos_token_id})
    trained = [index for document in encode(encoder, FULL) for index in document.input_ids[document.trained].tolist()]
    assert trained.count(stop) == 2


@pytest.mark.parametrize(("name", "answers", "count"), [("llama3", 2, 1), ("qwen2.5", 2, 1), ("qwen3", 2, 2)])
def test_tools_are_written_by_a_template_that_takes_them(name, answers, count):
    family = FAMILIES[name]
    documents = encode(make_encoder(family), Conversation(CALLS, TOOLS))
    assert len(documents) == count
    tokenizer = make_family_tokenizer(family)
    said = [text for document in documents for text in trained_texts(tokenizer, document)]
    assert len(said) == answers
    assert '"name": "weather"' in said[0]
    assert '{"city": "Oslo"}' in said[0]
    assert said[1].endswith(f"It is 4 degrees.{family.eos}")
    assert not any("4 degrees" in text for text in said[:1])
    last = documents[-1].input_ids.tolist()
    assert last == reference(make_family_tokenizer(family), Conversation(CALLS, TOOLS))


@pytest.mark.parametrize("name", ["chatml", "smollm", "gemma", "phi3", "plain"])
def test_tools_are_refused_by_a_template_that_does_not(name):
    encoder = make_encoder(FAMILIES[name])
    for conversation in (Conversation(CHAT, TOOLS), Conversation(CALLS)):
        refused = encode(encoder, conversation)
        assert isinstance(refused, RowRefused)
        assert refused.code == "tools_not_taken"


def test_sharegpt_calls_are_text_where_the_template_has_no_form_for_them():
    calling = CALLS[1] | {"text": '{"name": "weather"}'}
    [document] = encode(make_encoder(FAMILIES["chatml"]), Conversation([CALLS[0], calling, *CALLS[2:]]))
    tokenizer = make_family_tokenizer(FAMILIES["chatml"])
    assert trained_texts(tokenizer, document) == ['{"name": "weather"}<|im_end|>', "It is 4 degrees.<|im_end|>"]
    assert "<|im_start|>tool\n4 degrees<|im_end|>" in tokenizer.decode(document.input_ids)
    [document] = encode(make_encoder(FAMILIES["qwen2.5"]), Conversation([CALLS[0], calling, *CALLS[2:]]))
    assert "<tool_call>" in trained_texts(make_family_tokenizer(FAMILIES["qwen2.5"]), document)[0]


def test_what_a_template_would_leave_out_is_refused():
    encoder = make_encoder(FAMILIES["phi3"])
    conversation = Conversation([CHAT[0], {"role": "assistant", "content": "x"}, *CALLS[2:]])
    refused = encode(encoder, conversation)
    assert (refused.code, "turn 3" in refused.reason) == ("template_refused", True)
    thinking = CHAT[1] | {"reasoning_content": "Hm."}
    assert encode(encoder, Conversation([CHAT[0], thinking])).code == "template_refused"
    [document] = encode(make_encoder(FAMILIES["qwen3"]), Conversation([CHAT[0], thinking]))
    assert "Hm." in make_family_tokenizer(FAMILIES["qwen3"]).decode(document.input_ids[document.trained])


def test_thoughts_that_a_template_forgets_are_all_trained():
    """Qwen 3 drops earlier thoughts once the conversation goes on: each is trained in a document that still has it."""
    turns = [
        turn | {"content": f"<think>\nThought.\n</think>\n\n{turn['content']}"} if turn["role"] == "assistant" else turn
        for turn in CHAT
    ]
    family = FAMILIES["qwen3"]
    documents = encode(make_encoder(family), Conversation(turns))
    tokenizer = make_family_tokenizer(family)
    assert [text for document in documents for text in trained_texts(tokenizer, document)] == [
        f"<think>\nThought.\n</think>\n\n{answer['content']}<|im_end|>" for answer in (CHAT[1], CHAT[3])
    ]
    assert "Thought" not in tokenizer.decode(documents[1].input_ids[~documents[1].trained])


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_of_weight_zero_are_shown_and_not_trained(name):
    family = FAMILIES[name]
    tokenizer = make_family_tokenizer(family)
    for kept in (0, 1):
        documents = encode(make_encoder(family), FULL._replace(untrained=frozenset([4 - 2 * kept])))
        said = [text for document in documents for text in trained_texts(tokenizer, document)]
        assert len(said) == 1
        assert said[0].startswith(family.answers[kept])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("system", [True, False])
def test_preferences_share_the_tokens_of_their_prompt(name, system):
    family = FAMILIES[name]
    turns = FULL.turns[:2] if system else FULL.turns[1:2]
    sides = [
        Conversation([*turns, {"role": "assistant", "content": text}], None, frozenset(range(len(turns))))
        for text in ("Because it is.", "\nthe sea?")
    ]
    encoder = make_encoder(family, assistant_only=False)
    chosen, rejected = encode(encoder, Preference(*sides, len(turns)))
    start = int(chosen.trained.argmax())
    assert start == int(rejected.trained.argmax())
    assert chosen.input_ids[:start].tolist() == rejected.input_ids[:start].tolist()
    assert encoder.encode_prompt(sides[0], turns)[0] == chosen.input_ids[:start].tolist()
    [said] = trained_texts(make_family_tokenizer(family), chosen)
    assert said.startswith(family.answers[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_told_by_their_shape(name):
    encoder = make_encoder(FAMILIES[name])
    encode(encoder, FULL)
    facts = encoder.facts()
    assert facts["family"] == {"smollm": "chatml"}.get(name, name)
    assert facts["source"] == ("default" if name == "plain" else "model")
    assert len(facts["sha256"]) == 64
    tokenizer = make_family_tokenizer(FAMILIES[name])
    stop = FAMILIES[name].stop or FAMILIES[name].eos
    assert tokenizer.convert_tokens_to_ids(stop) in facts["stop_token_ids"]
