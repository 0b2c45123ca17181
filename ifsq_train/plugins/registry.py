"""Which kinds this process knows besides those that ship with it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from data_pipelines.errors import UserError
from data_pipelines.views import VIEW_KINDS
from ifsq_train.plugins.kinds import KINDS, Kind, ViewKind

GROUPS = tuple(kind.group for kind in KINDS)


@dataclass(frozen=True)
class _Known:
    kind: Kind
    origin: str


_known: dict[tuple[str, str], _Known] = {}
_shipped: dict[str, set[str]] = {group: set() for group in GROUPS}
_listeners: list[Callable[[], object]] = []


def on_change(listener: Callable[[], object]) -> None:
    """Have `listener` called after kinds were added."""
    _listeners.append(listener)


def ship(group: str, names: tuple[str, ...]) -> None:
    """Names of a group that plug-ins cannot take."""
    _shipped[group].update(names)


def register(kinds: list[Kind], origin: str) -> None:
    """Make kinds known; one that is known already is left alone.

    Args:
        kinds: of one plug-in.
        origin: file or package, for messages.

    Raises:
        UserError: a kind that is declared wrongly, or a name that is taken.
    """
    added = False
    for kind in kinds:
        try:
            names = kind.names
        except (TypeError, NameError, AttributeError) as error:
            raise UserError(f"plug-in {origin}: {kind.what}: {error}") from error
        for name in names:
            before = _known.get((kind.group, name))
            if before is not None and before.kind == kind:
                continue
            if before is not None or name in _shipped[kind.group]:
                owner = before.origin if before else "this program"
                raise UserError(
                    f"plug-in {origin}: {kind.what} kind '{name}' is taken by {owner}; rename it"
                )
            _known[kind.group, name] = _Known(kind, origin)
            if isinstance(kind, ViewKind):
                VIEW_KINDS[name] = kind.config
            added = True
    if added:
        for listener in _listeners:
            listener()


@contextmanager
def forgotten_afterwards() -> Iterator[None]:
    """Kinds added inside are unknown again outside; for programs that try several."""
    before, views = dict(_known), dict(VIEW_KINDS)
    try:
        yield
    finally:
        _known.clear()
        _known.update(before)
        VIEW_KINDS.clear()
        VIEW_KINDS.update(views)
        for listener in _listeners:
            listener()


def registered(group: str) -> list[Kind]:
    """Kinds of a group that plug-ins added, each once, in the order they came."""
    return list(dict.fromkeys(known.kind for (own, _), known in _known.items() if own == group))


def find(group: str, name: str) -> Kind | None:
    """The kind a plug-in added under this name; installed packages are asked too.

    Raises:
        UserError: the package that declares it cannot be loaded.
    """
    if (group, name) not in _known:
        load_installed({name}, (group,))
    known = _known.get((group, name))
    return known.kind if known else None


def names(group: str) -> list[str]:
    """Every name of a group that plug-ins have added or installed packages declare, sorted."""
    added = {name for own, name in _known if own == group}
    return sorted(added | {point.name for point in _declared(group)})


def unknown_kind(what: str, name: str, known: Iterable[str]) -> UserError:
    """The refusal of a kind nobody knows."""
    return UserError(
        f"{what} kind '{name}' is unknown; known are {', '.join(dict.fromkeys(known))}. A plug-in's"
        " kind needs its package installed, or --plugin FILE"
    )


def load_installed(names: set[str] | None = None, groups: tuple[str, ...] = GROUPS) -> None:
    """Load the kinds that installed packages declare as entry points, all or those of a name.

    Raises:
        UserError: a package cannot be loaded, or its entry point is no such kind.
    """
    for group in groups:
        for point in _declared(group):
            wanted = names is None or point.name in names
            if wanted and (group, point.name) not in _known:
                _load_point(point, group)


def _declared(group: str) -> tuple[EntryPoint, ...]:
    """Entry points of a group that the packages on the search path declare."""
    return _all_declared(tuple(sys.path))[group]


@cache
def _all_declared(_search_path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    """By group; reading those of every installed package takes a tenth of a second."""
    found = entry_points()
    return {group: tuple(found.select(group=group)) for group in GROUPS}


def _load_point(point: EntryPoint, group: str) -> None:
    package = point.dist.name if point.dist is not None else point.value
    origin = f"{package} (installed)"
    try:
        kind = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"plug-in {origin}: {group} '{point.name}' cannot be loaded: {reason}; repair or"
            " uninstall it"
        ) from error
    if not isinstance(kind, Kind) or kind.group != group or point.name not in kind.names:
        raise UserError(
            f"plug-in {origin}: entry point '{point.name}' of {group} is"
            f" {type(kind).__name__}, not a kind of that group and name; see docs/extending.md"
        )
    register([kind], origin)
