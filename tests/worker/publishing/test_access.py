"""Who may publish where, asked of a hub of the test's own before anything is trained."""

import pytest

from app.jobs.states import FailureCode
from worker.publishing import failures
from worker.publishing.access import require_access
from worker.publishing.failures import Target
from worker.stages import StageFailure

ORGS = {"team": "admin", "club": "write", "press": "contributor", "public": "read"}


def check(repo, token="hf_writer", *, private=True):
    require_access(Target(1, repo), token, lambda *_, **__: None, private=private)


def refuse(*arguments, **more):
    with pytest.raises(StageFailure) as caught:
        check(*arguments, **more)
    return caught.value


@pytest.mark.parametrize("repo", ["me/new", "Me/new", "team/new", "club/new", "press/new"])
def test_who_may_write_may_publish_to_a_repository_that_is_not_there_and_nothing_is_made(hub, repo):
    hub.enrol("hf_writer", name="me", role="write", orgs=ORGS)
    check(repo)
    assert hub.repositories == {}
    assert not [request for request in hub.requests if request.startswith(("POST", "PUT"))]


def test_who_may_write_may_publish_to_an_own_repository_and_nothing_is_changed(hub):
    hub.add("models", "me/old", {"README.md": b"old"}, private=True, readers={"hf_writer"})
    check("me/old")
    assert hub.head("me/old") == {"README.md": b"old"}
    assert len(hub.repositories["models", "me/old"].commits) == 1


@pytest.mark.parametrize("repo", ["you/new", "public/new", "you/open", "you/closed"])
def test_what_belongs_to_others_is_refused_with_a_name_that_would_do(hub, repo):
    hub.enrol("hf_writer", name="me", role="write", orgs=ORGS)
    hub.add("models", "you/open", {})
    hub.add("models", "you/closed", {}, private=True, readers={"hf_yours"})
    failure = refuse(repo, private=False)
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[1].repo")
    assert f"me/{repo.partition('/')[2]}" in failure.hint


def test_a_token_that_may_only_read_is_refused(hub):
    hub.enrol("hf_writer", name="me", role="read")
    failure = refuse("me/new")
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[1].token")
    assert "only read" in failure.message


def test_a_revoked_token_is_refused(hub):
    hub.tokens.discard("hf_writer")
    failure = refuse("me/new")
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[1].token")
    assert hub.pauses == []


@pytest.mark.parametrize(
    ("writable", "allowed"), [({"me"}, True), ({"me/old"}, True), ({"me/other"}, False), ({"you"}, False), (set(), False)]
)
def test_a_fine_grained_token_must_be_for_the_repository_or_its_owner(hub, writable, allowed):
    hub.add("models", "me/old", {}, private=True, readers={"hf_writer"})
    hub.enrol("hf_writer", name="me", role="fineGrained", writable=writable)
    if allowed:
        check("me/old")
    else:
        failure = refuse("me/old")
        assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[1].token")


def test_a_hub_that_lets_only_read_although_the_token_looks_good_is_believed(hub):
    hub.add("models", "me/old", {}, private=True, readers={"hf_writer"})
    account = hub.accounts["hf_writer"]
    hub.on_request = lambda: setattr(account, "role", "read" if "preupload" in hub.requests[-1] else "write")
    failure = refuse("me/old")
    assert (failure.code, failure.param) == (FailureCode.HUB_UNAUTHORIZED, "publish[1].repo")


def test_a_public_repository_is_refused_where_a_private_one_is_asked_for(hub):
    hub.add("models", "me/old", {})
    failure = refuse("me/old")
    assert (failure.code, failure.param) == (FailureCode.INVALID_SPEC, "publish[1].private")
    check("me/old", private=False)


def test_a_hub_that_is_ill_is_asked_again_and_given_up_in_the_end(hub):
    hub.befall("whoami", status=503, times=2)
    check("me/new")
    assert hub.pauses == list(failures.PAUSES[:2])
    hub.status = 503
    assert refuse("me/new").code == FailureCode.HUB_UNAVAILABLE
