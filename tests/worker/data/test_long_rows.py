from itertools import pairwise

import numpy as np
import pytest
from tiny_tokenizer import BOS, CHATML, HIDING, MARKED, PLAIN, STOP, make_tokenizer

from worker.data.formats.turns import Conversation, Preference
from worker.data.long_rows import fit
from worker.data.masks import Encoder

SYSTEM = {"role": "system", "content": "brown fox"}


def conversation(*answers, system=True):
    turns = [SYSTEM] if system else []
    for answer in answers:
        turns += [{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": answer}]
    return Conversation(turns)


def fit_one(sample, max_seq_length, policy, *, template=CHATML, assistant_only=True, adds_bos=False, whole=False):
    tokenizer = make_tokenizer(template, adds_bos=adds_bos)
    encoder = Encoder(tokenizer, assistant_only=assistant_only, eos_token_ids={STOP}, whole=whole)
    [fitted] = fit([sample], encoder, max_seq_length=max_seq_length, policy=policy)
    return [make_tokenizer().decode(document.input_ids) for document in fitted.documents], fitted, fitted.documents


def length_of(sample):
    _, _, [document] = fit_one(sample, 10_000, "split")
    return len(document.input_ids)


def test_split_parts_at_turns_and_keeps_the_system_turn():
    whole = conversation("the dog", "the fox", "the lazy dog")
    room = length_of(conversation("the dog", "the fox"))
    texts, fitted, documents = fit_one(whole, room, "split")
    assert texts == [
        fit_one(part, 10_000, "split")[0][0] for part in (conversation("the dog", "the fox"), conversation("the lazy dog"))
    ]
    assert (fitted.split, fitted.cut) == (True, False)
    assert len(documents[0].input_ids) == room
    one_less, _, _ = fit_one(whole, room - 1, "split")
    assert len(one_less) == 3 or length_of(conversation("the fox", "the lazy dog")) <= room - 1


@pytest.mark.parametrize("options", [{"template": MARKED}, {"assistant_only": False}, {"adds_bos": True}])
def test_split_finds_the_turns_however_they_are_encoded(options):
    whole, first = conversation("the dog", "the fox", "the lazy dog"), conversation("the dog", "the fox")
    _, _, [document] = fit_one(first, 10_000, "split", **options)
    texts, fitted, _ = fit_one(whole, len(document.input_ids), "split", **options)
    assert texts == [fit_one(part, 10_000, "split", **options)[0][0] for part in (first, conversation("the lazy dog"))]
    assert fitted.split == 1


def test_what_cannot_be_split_is_cut():
    texts, fitted, _ = fit_one(conversation("the dog", "the fox"), 40, "split", template=HIDING, assistant_only=False)
    assert len(texts) == 1
    assert (fitted.split, fitted.cut) == (False, True)


def test_an_exchange_that_is_too_long_is_cut():
    sample = conversation("dog " * 50)
    texts, fitted, [document] = fit_one(sample, 60, "split")
    assert len(document.input_ids) == 60
    assert document.trained.any()
    assert (fitted.split, fitted.cut) == (False, True)
    assert fit_one(sample, 60, "cut")[0] == texts


def test_a_row_whose_question_fills_it_is_lost_and_counted():
    _, fitted, documents = fit_one(
        Conversation([{"role": "user", "content": "dog " * 50}, {"role": "assistant", "content": "a"}]), 20, "split"
    )
    assert documents == []
    assert (fitted.split, fitted.cut) == (False, False)


def test_drop_leaves_long_rows_out():
    _, fitted, documents = fit_one(conversation("the dog", "the fox"), 20, "drop")
    assert documents == []
    assert fitted.tokens_lost > 20


@pytest.mark.parametrize("policy", ["split", "cut", "drop"])
def test_what_fits_is_left_alone(policy):
    sample = conversation("the dog")
    texts, fitted, _ = fit_one(sample, length_of(sample), policy)
    assert len(texts) == 1
    assert (fitted.split, fitted.cut) == (False, False)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("length", range(1, 40))
def test_of_a_text_that_is_split_every_token_but_the_first_is_learned_once(length, adds_bos):
    """After the BOS, or after the token before it."""
    whole, _, [document] = fit_one("a" * length, 10_000, "split", adds_bos=adds_bos)
    _, fitted, documents = fit_one("a" * length, 16, "split", adds_bos=adds_bos)
    assert whole[0].endswith("a" * length + "<|im_end|>")
    learned = np.concatenate([part.input_ids[1:] for part in documents])
    assert learned.tolist() == document.input_ids[1:].tolist()
    assert all(part.trained[1:].all() and 2 <= len(part.input_ids) <= 16 for part in documents)
    for before, part in pairwise(documents):
        assert part.input_ids[0] == (BOS if adds_bos else before.input_ids[-1])
    assert (fitted.split, fitted.cut, fitted.tokens_lost) == (len(document.input_ids) > 16, False, 0)


@pytest.mark.parametrize("template", [CHATML, PLAIN])
def test_what_is_learned_whole_is_split_as_a_text_is(template):
    sample = conversation("the fox", "the lazy dog")
    [text], _, [document] = fit_one(sample, 10_000, "split", template=template, whole=True)
    assert text.count("<|im_end|>") == (5 if template == CHATML else 1)
    assert document.trained.all()
    _, fitted, documents = fit_one(sample, 16, "split", template=template, whole=True)
    assert np.concatenate([part.input_ids[1:] for part in documents]).tolist() == document.input_ids[1:].tolist()
    assert (fitted.split, fitted.cut) == (True, False)


TOOL_CALL = {"type": "function", "function": {"name": "look", "arguments": {}}}


def test_a_call_its_result_and_its_answer_stay_together():
    asked, called = {"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "", "tool_calls": [TOOL_CALL]}
    exchange = [
        asked,
        called | {"text": "look()"},
        {"role": "tool", "content": "dog"},
        {"role": "assistant", "content": "a dog"},
    ]
    room = length_of(Conversation([SYSTEM, *exchange]))
    texts, fitted, _ = fit_one(Conversation([SYSTEM, *exchange, *exchange, *exchange]), room, "split")
    assert len(texts) == 3
    assert len(set(texts)) == 1
    assert (fitted.split, fitted.cut) == (True, False)


def test_parts_without_anything_to_learn_are_left_out():
    whole = conversation("the dog", "the fox", "the lazy dog")._replace(untrained=frozenset([2, 6]))
    texts, _, _ = fit_one(whole, length_of(conversation("the lazy dog")), "split")
    assert [("the fox<" in text, "the dog<" in text) for text in texts] == [(True, False)]


@pytest.mark.parametrize("policy", ["split", "cut", "drop"])
def test_preferences_that_are_too_long_stay_pairs(policy):
    asked = {"role": "user", "content": "what is it?"}
    sides = [Conversation([asked, {"role": "assistant", "content": text}], None, frozenset([0])) for text in ("a", "dog " * 50)]
    _, fitted, documents = fit_one(Preference(*sides, 1), 60, policy)
    if policy == "drop":
        assert documents == []
    else:
        assert [len(document.input_ids) < 60 for document in documents] == [True, False]
        assert fitted.cut
    _, fitted, documents = fit_one(Preference(*sides, 1), 14, policy)
    assert documents == []
    assert fitted.tokens_lost > 50
