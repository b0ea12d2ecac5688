"""/v1/secrets: tokens that specs name as `secret:NAME`. Written once, never read back."""

from typing import Annotated

from fastapi import APIRouter, Path

from app.dependencies import ReadSession, SettingsDep, WriteSession
from app.models import Secret as SecretRow
from app.pagination import Page, make_page
from app.secrets import repository, schemas, service
from app.strictness import StrictRoute
from app.tenancy import tenant_of

router = APIRouter(prefix="/v1/secrets", tags=["secrets"], route_class=StrictRoute)

Name = Annotated[str, Path(pattern=schemas.NAME_PATTERN, description="Letters, digits, dots, hyphens and underscores.")]


def present(secret: SecretRow) -> schemas.Secret:
    return schemas.Secret(name=secret.name, created_at=secret.created_at, updated_at=secret.updated_at)


@router.put("/{name}")
def put_secret(name: Name, body: schemas.SecretValue, session: WriteSession, settings: SettingsDep) -> schemas.Secret:
    """Stores the value encrypted, in place of an earlier one of that name. No answer ever holds it."""
    return present(service.put(session, settings, name, body.value.get_secret_value()))


@router.get("")
def list_secrets(session: ReadSession) -> Page[schemas.Secret]:
    """Names and times, by name."""
    return make_page([present(secret) for secret in repository.list_all(session, tenant_of(session))])


@router.delete("/{name}")
def delete_secret(name: Name, session: WriteSession) -> schemas.DeletedSecret:
    """Jobs that name it fail when they need it."""
    service.delete(session, name)
    return schemas.DeletedSecret(name=name)
