import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizer import BOS, CHATML, HIDING, MARKED, PLAIN, SPACIOUS, STOP, STRICT, WITH_BOS, make_tokenizer

from app.jobs.states import FailureCode
from worker.data.formats.turns import Conversation, Preference
from worker.data.masks import Encoded, Encoder
from worker.data.rows import RowRefused
from worker.stages import StageFailure

QUESTION = {"role": "user", "content": "what is it?"}
ANSWER = {"role": "assistant", "content": "It is a dog."}
TWO_ANSWERS = Conversation(
    [QUESTION, ANSWER, {"role": "user", "content": "the dog?"}, {"role": "assistant", "content": "the lazy dog"}]
)


def make_encoder(template=CHATML, *, assistant_only=True, **options):
    return Encoder(make_tokenizer(template, **options), assistant_only=assistant_only, eos_token_ids={STOP})


def encode(encoder, *samples):
    """The one document of each sample, or why it has none."""
    return [item if isinstance(item, RowRefused) else item[0] for item in encoder.encode(list(samples)) if one(item)]


def one(item):
    return isinstance(item, RowRefused) or len(item) == 1


def trained_texts(encoded):
    """The text of each run of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.trained.astype(int), [0]])))
    tokenizer = make_tokenizer()
    return [tokenizer.decode(encoded.input_ids[start:end]) for start, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("template", [CHATML, MARKED, WITH_BOS])
def test_answers_and_their_stop_tokens_are_trained(template):
    [encoded] = encode(make_encoder(template), TWO_ANSWERS)
    assert trained_texts(encoded) == ["It is a dog.<|im_end|>", "the lazy dog<|im_end|>"]
    assert (encoded.input_ids.dtype, encoded.trained.dtype) == (np.int32, np.bool_)


def test_templates_with_and_without_marks_give_the_same_tokens():
    [by_prefix], [by_marks] = encode(make_encoder(CHATML), TWO_ANSWERS), encode(make_encoder(MARKED), TWO_ANSWERS)
    assert by_prefix.input_ids.tolist() == by_marks.input_ids.tolist()
    assert by_prefix.trained.tolist() == by_marks.trained.tolist()


TEXTS = st.text(alphabet="ab \n\t.é漢🙂", min_size=1, max_size=12)


@pytest.mark.parametrize("template", [CHATML, SPACIOUS])
@settings(max_examples=200, deadline=None)
@given(exchanges=st.lists(st.tuples(TEXTS, TEXTS.filter(str.strip)), min_size=1, max_size=3))
def test_what_is_trained_is_what_the_model_would_say(template, exchanges):
    """Whatever spaces and characters meet at the border, the prompt's tokens stand before the answer's, and only the answer's
    are trained."""
    turns = [
        {"role": role, "content": text} for pair in exchanges for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    encoder = make_encoder(template)
    [encoded] = encode(encoder, Conversation(turns))
    assert trained_texts(encoded) == [f"{answer}<|im_end|>" for _, answer in exchanges]
    prompt, text = encoder.encode_prompt(Conversation(turns), turns[:1])
    assert encoded.input_ids[: len(prompt)].tolist() == prompt
    assert not encoded.trained[: len(prompt)].any()
    assert text.rstrip("\n").endswith("<|im_start|>assistant")


@pytest.mark.parametrize("template", [CHATML, SPACIOUS, PLAIN])
@settings(max_examples=100, deadline=None)
@given(answers=st.tuples(TEXTS.filter(str.strip), TEXTS.filter(str.strip)))
def test_both_sides_of_a_preference_begin_with_the_tokens_of_the_prompt(template, answers):
    encoder = make_encoder(template)
    sides = [Conversation([QUESTION, ANSWER | {"content": text}], None, frozenset([0])) for text in answers]
    [documents] = encoder.encode([Preference(*sides, 1)])
    if isinstance(documents, RowRefused):
        assert documents.code == "unstable_tokens"
        return
    prompt, _ = encoder.encode_prompt(sides[0], [QUESTION])
    for document in documents:
        assert document.input_ids[: len(prompt)].tolist() == prompt
        assert document.trained.argmax() == len(prompt)


@pytest.mark.parametrize("template", [CHATML, WITH_BOS])
@pytest.mark.parametrize("adds_bos", [True, False])
def test_there_is_one_bos_where_template_or_tokenizer_wants_one(template, adds_bos):
    encoder = make_encoder(template, adds_bos=adds_bos)
    [encoded] = encode(encoder, TWO_ANSWERS)
    prompt, _ = encoder.encode_prompt(TWO_ANSWERS, [QUESTION])
    wanted = 1 if adds_bos or template == WITH_BOS else 0
    assert encoded.input_ids.tolist().count(BOS) == prompt.count(BOS) == wanted
    assert trained_texts(encoded)[0] == "It is a dog.<|im_end|>"


def test_all_tokens_are_trained_if_asked():
    [encoded] = encode(make_encoder(assistant_only=False), TWO_ANSWERS)
    assert encoded.trained.all()


def test_texts_are_trained_whole_and_end():
    encoder = make_encoder(template=None, adds_bos=True)
    first, second = encode(encoder, "the lazy dog", "a")
    assert first.input_ids[0] == BOS
    assert first.input_ids[-1] == second.input_ids[-1] == STOP
    assert first.trained[1:].all()


def test_an_unstable_template_is_the_users_choice_to_solve():
    with pytest.raises(StageFailure) as failure:
        encode(make_encoder(HIDING), TWO_ANSWERS)
    assert (failure.value.code, failure.value.param) == (FailureCode.INVALID_SPEC, "training.assistant_only_loss")
    assert failure.value.patch == {"training": {"assistant_only_loss": False}}
    [encoded] = encode(make_encoder(HIDING, assistant_only=False), TWO_ANSWERS)
    assert encoded.trained.all()


def test_conversations_that_a_template_refuses_are_refused_alone():
    refused, encoded = encode(make_encoder(STRICT), Conversation([QUESTION, *TWO_ANSWERS.turns]), TWO_ANSWERS)
    assert isinstance(refused, RowRefused)
    assert (refused.code, "roles must alternate" in refused.reason) == ("template_refused", True)
    assert isinstance(encoded, Encoded)


def test_templates_without_a_stop_token_are_noticed():
    encoder = make_encoder(PLAIN)
    [encoded] = encode(encoder, TWO_ANSWERS)
    assert encoder.unstopped == 2
    assert trained_texts(encoded) == [" It is a dog.\n", " the lazy dog\n"]


def test_the_tokens_that_end_answers_are_collected():
    encoder = Encoder(make_tokenizer(), assistant_only=True, eos_token_ids={7})
    encode(encoder, TWO_ANSWERS)
    assert encoder.stop_token_ids == {7, STOP}
