"""tokens.json, which makes a token dataset a finished one."""

from typing import Any

from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import DataError
from data_pipelines.storage.open import Storage
from data_pipelines.tokens import schema
from data_pipelines.tokens.format import FORMAT_NAME, FORMAT_VERSION, SHARD_FOLDER, TOKENS_JSON
from data_pipelines.tokens.writer import facts_sha256, read_job


def read_tokens_json(storage: Storage) -> dict[str, Any]:
    """The facts of tokens.json.

    Raises:
        DataError: missing (says how far a precompute got), damaged, or of another format.
    """
    if not storage.exists(TOKENS_JSON):
        raise DataError(_unfinished(storage))
    where = f"{storage.url}/{TOKENS_JSON}"
    try:
        facts = parse_json(storage.read(TOKENS_JSON), where)
        found = checked(schema.FORMAT, facts, where)
        same = (found["format"], found["version"]) == (FORMAT_NAME, FORMAT_VERSION)
        if same:
            checked(schema.TOKENS, facts, where)
    except DataError as error:
        raise DataError(f"{error}; run the precompute again, it writes it anew") from None
    if not same:
        raise DataError(
            f"{where} has format {(found['format'], found['version'])}, expected "
            f"{(FORMAT_NAME, FORMAT_VERSION)}; use the matching version or precompute again"
        )
    if facts.get("sha256", facts_sha256(facts)) != facts_sha256(facts):
        raise DataError(
            f"{where} is damaged: its contents do not match their checksum; run the precompute "
            "again, it writes it anew"
        )
    return facts


def does_not_match(storage: Storage) -> DataError:
    """The error of a shard table that is not the one tokens.json names."""
    return DataError(
        f"{storage.url}: the shard table does not match {TOKENS_JSON}; run the precompute again, "
        "it writes both anew"
    )


def _unfinished(storage: Storage) -> str:
    spec = read_job(storage)
    if spec is None:
        return (
            f"{storage.url} holds no token dataset ({TOKENS_JSON} is missing); check the path or "
            "run ifsq precompute"
        )
    done = len(storage.list(SHARD_FOLDER))
    return (
        f"{storage.url} holds an unfinished token dataset ({done} of {spec.num_shards} shards, "
        f"{TOKENS_JSON} is missing); run ifsq precompute again: it continues where it stopped"
    )
