"""Members of tars to samples: an image and its label, wherever they lie in the tar.

As in WebDataset, a sample is what has the same path up to the first dot of its name. Three things
go beyond that, because tars in use have them: members of a sample need not be neighbours; what is
between dots (`0.001.jpg`, `v.a.jpg`) is part of the name where one key would get several images,
and it is a number or each image has a label of its own; and the same key may come again as a
complete sample, as in archives that were joined.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from data_pipelines.images.packing.formats import IMAGE_EXTENSIONS
from data_pipelines.images.packing.tar import TarMember, split_name

_SYSTEM_FOLDERS = frozenset(
    ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
)
MAX_ROLES = 8
"""More images of one key than this are no left, right, mask ... of one sample."""


@dataclass(frozen=True)
class TarSample:
    """Members with one key."""

    key: str
    members: dict[str, TarMember]
    """By extension, lower case: everything after the key and its dot."""
    repeated: list[str] = field(default_factory=list)
    """Extensions that come more than once; `members` has the last."""

    def ending_in(self, extension: str) -> list[TarMember]:
        """Members called `.extension`, or else those called `.anything.extension`."""
        if extension in self.members:
            return [self.members[extension]]
        return [m for name, m in self.members.items() if name.endswith(f".{extension}")]

    @property
    def images(self) -> dict[str, TarMember]:
        """Members whose name is that of an image, by extension."""
        return {name: m for name, m in self.members.items() if is_image(name)}

    def image(self, image_key: str | None) -> TarMember | str:
        """The sample's image, or why there is none: `.jpg` and so on alone, or the only one."""
        if image_key is not None:
            found = self.ending_in(image_key)
            expected = f"expected one .{image_key}"
        else:
            images = self.images
            exact = [member for name, member in images.items() if name in IMAGE_EXTENSIONS]
            found = exact if len(exact) == 1 else list(images.values())
            expected = "expected one of jpg, jpeg, png, webp: --image-key says which it is"
        if len(found) != 1:
            names = ", ".join(sorted(self.members)) or "nothing"
            return f"{len(found)} image members in {names}, {expected}"
        if self.repeated:
            return f"member .{self.repeated[0]} comes more than once"
        return found[0].problem or found[0]


def is_image(extension: str) -> bool:
    """Whether a member's extension, such as `jpg` or `left.png`, is that of an image."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS


def is_hidden(name: str) -> bool:
    """Files of the system, not of the data: `.DS_Store`, `._a.jpg`, `__MACOSX/`, `@eaDir/`."""
    parts = name.split("/")
    return any(
        (part.startswith(".") and part not in (".", "..")) or part in _SYSTEM_FOLDERS
        for part in parts
    )


def group_samples(members: Sequence[TarMember]) -> Iterator[TarSample]:
    """Members to samples, in order of their first members; hidden ones and those without an
    extension are skipped."""
    used: Counter[str] = Counter()
    by_archive: dict[int, list[TarMember]] = defaultdict(list)
    for member in members:
        if not is_hidden(member.name) and split_name(member.name)[1]:
            by_archive[member.archive].append(member)
    for archive in by_archive.values():
        for key, group in _groups(archive):
            for sample in _split_numbers(key, group):
                used[sample.key] += 1
                if used[sample.key] > 1:
                    key = f"{sample.key}__{used[sample.key]}"
                    yield TarSample(key, sample.members, sample.repeated)
                else:
                    yield sample


def _groups(members: Iterable[TarMember]) -> list[tuple[str, list[TarMember]]]:
    """Members of each sample of one archive."""
    runs: dict[str, list[list[TarMember]]] = defaultdict(list)
    order: list[tuple[str, int]] = []
    last, extensions = None, set[str]()
    for member in members:
        key, extension = split_name(member.name)
        if key != last or extension in extensions:
            order.append((key, len(runs[key])))
            runs[key].append([])
            last, extensions = key, set()
        runs[key][-1].append(member)
        extensions.add(extension)
    groups = []
    for key, number in order:
        parts = runs[key]
        if _are_complete(parts):
            groups.append((key, parts[number]))
        elif number == 0:
            groups.append((key, [member for part in parts for member in part]))
    return groups


def _are_complete(parts: Sequence[Sequence[TarMember]]) -> bool:
    """Whether the same key comes as several samples, each with its image."""
    extensions = [[split_name(member.name)[1] for member in part] for part in parts]
    every = [extension for part in extensions for extension in part]
    return len(set(every)) < len(every) and all(any(map(is_image, part)) for part in extensions)


def _split_numbers(key: str, group: Sequence[TarMember]) -> Iterator[TarSample]:
    """One sample, or several where what follows the first dot tells their names apart."""
    extensions = [split_name(member.name)[1] for member in group]
    stems = {name.rpartition(".")[0] for name in extensions if is_image(name)}
    inner = stems - {""}
    numbers = all(not any(c.isalpha() for c in stem) for stem in inner)
    labelled = {name.rpartition(".")[0] for name in extensions if not is_image(name)}
    names = numbers or len(stems) > MAX_ROLES or stems <= labelled
    if len(stems) < 2 or not inner or not names:
        yield _sample(key, zip(extensions, group, strict=True))
        return
    parts: dict[str, list[tuple[str, TarMember]]] = defaultdict(list)
    for name, member in zip(extensions, group, strict=True):
        stem, _, extension = name.rpartition(".")
        parts[f"{key}.{stem}" if stem else key].append((extension, member))
    for name, found in parts.items():
        yield _sample(name, found)


def _sample(key: str, members: Iterable[tuple[str, TarMember]]) -> TarSample:
    sample = TarSample(key, {})
    for extension, member in members:
        if extension in sample.members:
            sample.repeated.append(extension)
        sample.members[extension] = member
    return sample
