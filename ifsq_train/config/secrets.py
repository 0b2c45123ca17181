"""What may not come into a recipe: it is stored with everything made from it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.credentials import HOW_INSTEAD, has_credentials

ENVIRONMENT_PREFIX = "IFSQ_"
"""Variables that ``${oc.env:NAME}`` may read begin so."""
_SECRET_WORDS = re.compile(
    r"(^|_)(SECRETS?|PASSWORD|PASSWD|PASSPHRASE|PWD|TOKEN|CREDENTIALS?"
    r"|(ACCESS|API|PRIVATE|AUTH)_?KEY|APIKEY|KEY_ID)(_|$)"
)


def names_a_secret(variable: str) -> bool:
    """Whether an environment variable's name says that its value is a secret."""
    return _SECRET_WORDS.search(variable.upper()) is not None


@contextmanager
def guarded_environment() -> Iterator[None]:
    """Inside, ``${oc.env:NAME}`` reads variables of the project only, and none that is a secret."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    def read(key: str, *default: Any) -> Any:
        if not key.startswith(ENVIRONMENT_PREFIX) or names_a_secret(key):
            raise UserError(
                f"${{oc.env:{key}}} is not read: a recipe is stored with everything made from it;"
                f" only variables that begin with {ENVIRONMENT_PREFIX} and hold no secret may be"
                " named; write the value itself, or key=value on the command line"
            )
        return oc.env(key, *default)

    OmegaConf.register_resolver("oc.env", read, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_resolver("oc.env", oc.env, replace=True)


def refuse_secrets(values: Any, source: str, key: str = "") -> None:
    """Make sure that no value of a recipe is a URL with credentials, whatever its key.

    Raises:
        UserError: one is; names its key and does not show it.
    """
    if isinstance(values, dict):
        for name, value in values.items():
            refuse_secrets(value, source, f"{key}.{name}" if key else str(name))
            if isinstance(name, str) and has_credentials(name):
                raise UserError(f"{source}: a key of {key or 'the recipe'}: {HOW_INSTEAD}")
    elif isinstance(values, list | tuple):
        for number, value in enumerate(values):
            refuse_secrets(value, source, f"{key}.{number}" if key else str(number))
    elif isinstance(values, str) and has_credentials(values):
        raise UserError(f"{source}: {key}: {HOW_INSTEAD}")
