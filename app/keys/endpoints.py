"""/v1/keys: who may call, made and revoked by administrators."""

from fastapi import APIRouter

from app.dependencies import Caller, KeyringDep, ReadSession, WriteSession
from app.errors import Forbidden
from app.keys import schemas, service
from app.pagination import Page, make_page
from app.strictness import StrictRoute

router = APIRouter(prefix="/v1/keys", tags=["keys"], route_class=StrictRoute)


@router.post("", status_code=201)
def create_key(wanted: schemas.NewKey, caller: Caller, session: WriteSession, keyring: KeyringDep) -> schemas.CreatedKey:
    """The answer holds the key, this once. The first key of a server is made on its host."""
    if keyring.is_empty:
        raise Forbidden("This server has no key yet. Make the first one on its host, by `tunesmith keys create --local`.")
    row, key = service.create(session, caller, wanted)
    keyring.forget_after_commit(session)
    return schemas.CreatedKey(**schemas.Key.of(row).model_dump(), key=key)


@router.get("")
def list_keys(caller: Caller, session: ReadSession) -> Page[schemas.Key]:
    """The whole list, newest first: the caller's tenant's keys; for an administrator of the tenant `default` all."""
    return make_page([schemas.Key.of(row) for row in service.list_all(session, caller)])


@router.delete("/{key_id}")
def delete_key(key_id: str, caller: Caller, session: WriteSession, keyring: KeyringDep) -> schemas.DeletedKey:
    """Revokes it. Other processes of the API refuse it within a second."""
    service.revoke(session, caller, key_id)
    keyring.forget_after_commit(session)
    return schemas.DeletedKey(id=key_id)
