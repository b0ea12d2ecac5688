"""`tunesmith keys create --local`: makes a key through the database, on the host, where no key is needed for it."""

import json
import sys
from argparse import ArgumentParser

from pydantic import ValidationError

from app.db import make_engine, write_session
from app.error_handlers import format_path
from app.keys import service
from app.keys.schemas import CreatedKey, Key, NewKey
from app.keys.scopes import EVERYTHING, Principal, Scope
from app.migration import migrate
from app.settings import Settings, read_flags
from app.tenancy import DEFAULT_TENANT


def main() -> None:
    options = ArgumentParser(add_help=False)
    options.add_argument("wanted", type=json.loads, help="what POST /v1/keys takes; all scopes by default")
    options.add_argument("--json", dest="as_json", action="store_true")
    settings = read_flags("tunesmith keys create --local", parents=[options])
    given, _ = options.parse_known_args()
    try:
        wanted = NewKey.model_validate({"scopes": list(Scope)} | given.wanted)
    except ValidationError as problem:
        sys.exit("; ".join(f"{format_path(list(error['loc']))}: {error['msg']}" for error in problem.errors()))
    made = create(settings, wanted)
    print(json.dumps(made.model_dump(mode="json"), indent=2) if given.as_json else made.key)


def create(settings: Settings, wanted: NewKey) -> CreatedKey:
    engine = make_engine(settings.database)
    migrate(engine)
    with write_session(engine) as session:
        row, key = service.create(session, Principal(DEFAULT_TENANT, EVERYTHING), wanted)
    return CreatedKey(**Key.of(row).model_dump(), key=key)


if __name__ == "__main__":
    main()
