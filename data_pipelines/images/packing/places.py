"""What a folder holds: which command takes it, and formats of others, called by their name."""

from collections.abc import Iterable
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.images.impostors import name_impostor
from data_pipelines.images.packing.formats import IMAGE_EXTENSIONS
from data_pipelines.images.packing.other_formats import name_other_format
from data_pipelines.images.packing.samples import is_hidden
from data_pipelines.regular_files import open_regular

_HEAD_BYTES = 512
_PACKED_TARS = frozenset(("tgz", "tzst", "txz", "tbz", "tbz2", "tlz", "tlzma", "tlz4"))
_COMPRESSIONS = frozenset(("gz", "zst", "xz", "bz2", "lz4", "lzma", "lz", "z", "br"))
_COMPRESSED = _PACKED_TARS | _COMPRESSIONS | {"zip", "rar", "7z"}


def name_format(paths: Iterable[str]) -> str:
    """What other kind of dataset these files are, with the way to convert it; empty if unknown."""
    bases = {path.rpartition("/")[2].lower() for path in paths if not is_hidden(path)}
    ends = {base.rpartition(".")[2] for base in bases}
    if ends & {"tar"}:
        return "it holds .tar files: use `ifsq data index`"
    if ends & {"parquet"}:
        return "it holds Parquet files: use `ifsq data pack`"
    if ends & IMAGE_EXTENSIONS:
        return "it holds image files: use `ifsq data pack`"
    if other := name_other_format(bases):
        return other
    if ends & _COMPRESSED:
        return "it holds compressed archives: unpack them first"
    return ""


def is_compressed_tar(path: str) -> bool:
    """Whether a file is a tar that was compressed as a whole, by its name."""
    stem, _, end = path.lower().rpartition(".")
    return end in _PACKED_TARS or (end in _COMPRESSIONS and stem.endswith(".tar"))


def refuse_file(path: Path, wanted: str) -> None:
    """Raises UserError unless `path` is a folder; says what to give instead."""
    if path.is_dir():
        return
    if not path.exists():
        raise UserError(f"{path} does not exist; give {wanted}")
    with open_regular(path) as file:
        found = name_impostor(file.read(_HEAD_BYTES))
    if other := name_other_format({path.name.lower()}):
        raise UserError(f"{path}: {other}")
    hint = f"give the folder it is in, {path.parent}, or" if not found else "give"
    if path.suffix == ".tar":
        hint = "use `ifsq data index` with its folder, or give"
    raise UserError(f"{path} is not a folder{found}; {hint} {wanted}")


def holds_images(paths: Iterable[str]) -> bool:
    """Whether any of these files is an image by its name."""
    return any(path.rpartition(".")[2].lower() in IMAGE_EXTENSIONS for path in paths if "." in path)
