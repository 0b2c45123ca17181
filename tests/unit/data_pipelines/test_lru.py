"""What was used last is kept, and no more than was said."""

from __future__ import annotations

from data_pipelines.lru import Lru


def test_the_least_recently_used_is_forgotten() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    cache: Lru[str, str] = Lru(2)
    for key in ("a", "b", "a", "c", "a", "b"):
        assert cache.get(key, lambda key=key: make(key)) == key.upper()
    # "a" was used between, so "c" takes the place of "b", and "b" that of "c".
    assert made == ["a", "b", "c", "b"]
