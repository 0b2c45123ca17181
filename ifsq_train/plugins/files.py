"""Plug-ins that are one file: loaded by path, and carried to other processes as text.

A file is run only where somebody names it on a command line, or where a process that was told so
carries it on; reading a recipe never runs one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import importlib.abc
import importlib.util
import json
import os
import sys
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from data_pipelines.documents import text_of
from data_pipelines.errors import UserError
from data_pipelines.regular_files import open_regular
from ifsq_train.plugins.kinds import Kind
from ifsq_train.plugins.registry import register

PLUGINS_VARIABLE = "IFSQ_PLUGINS"
"""Environment variable of a submitted job: what `packed` gave."""
MAX_PACKED_BYTES = 100_000
MAX_TEXT_BYTES = 10_000_000
_LONGEST_REASON = 500
_ITS_OWN = (Exception, SystemExit, GeneratorExit)
"""What running a file can raise by itself; Ctrl-C and SIGTERM are for the command."""


@dataclass(frozen=True)
class PluginFile:
    """A file that was loaded.

    Attributes:
        name: file name, such as ``my_idea.py``.
        text: what it holds.
    """

    name: str
    text: str


_loaded: dict[str, PluginFile] = {}


def load_files(paths: Iterable[str | Path]) -> None:
    """Run plug-in files and make their kinds known; a file loaded before is left alone.

    Raises:
        UserError: no such file, it cannot be run, or it declares no kind.
    """
    for path in map(Path, paths):
        try:
            with open_regular(path) as file:
                data = file.read(MAX_TEXT_BYTES + 1)
            if len(data) > MAX_TEXT_BYTES:
                raise UserError(f"--plugin {path}: more than {MAX_TEXT_BYTES} bytes are no plug-in")
            text = text_of(data)
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
            raise UserError(f"--plugin {path}: {reason}; give a Python file") from error
        _load(PluginFile(path.name, text), str(path))


def loaded_files() -> tuple[PluginFile, ...]:
    """The files this process has loaded, in that order."""
    return tuple(_loaded.values())


def forget_files() -> None:
    """As if none had been loaded; their kinds are the registry's business."""
    _loaded.clear()


def packed() -> str:
    """The loaded files as one short line for an environment variable; empty if there are none.

    Raises:
        UserError: together they are too large for it.
    """
    if not _loaded:
        return ""
    files = [[file.name, file.text] for file in loaded_files()]
    text = base64.b64encode(zlib.compress(json.dumps(files).encode(), 9)).decode()
    if len(text) > MAX_PACKED_BYTES:
        raise UserError(
            f"plug-in files take {len(text)} bytes compressed, {MAX_PACKED_BYTES} can travel with"
            " a job; install them as a package in the image instead"
        )
    return text


def load_packed(text: str) -> None:
    """Load what `packed` gave in another process; empty text is fine.

    Raises:
        UserError: damaged text, or a file that cannot be run here.
    """
    if not text:
        return
    try:
        files = json.loads(zlib.decompress(base64.b64decode(text, validate=True)))
        found = [PluginFile(str(name), str(source)) for name, source in files]
    except (binascii.Error, zlib.error, ValueError, TypeError) as error:
        raise UserError(f"{PLUGINS_VARIABLE} is damaged ({error}); submit the job again") from error
    for file in found:
        _load(file, file.name)


def load_from_environment() -> None:
    """Load the files a submitted job carries in IFSQ_PLUGINS.

    Raises:
        UserError: see `load_packed`.
    """
    load_packed(os.environ.get(PLUGINS_VARIABLE, ""))


class _TextLoader(importlib.abc.ExecutionLoader):
    """Gives a module its source, so that tracebacks and `inspect` find it without a file."""

    def __init__(self, file: PluginFile, path: str) -> None:
        self._file, self._path = file, path

    def get_filename(self, fullname: str) -> str:
        """The path it was given by."""
        del fullname
        return self._path

    def get_source(self, fullname: str) -> str:
        """The text."""
        del fullname
        return self._file.text


def _load(file: PluginFile, path: str) -> None:
    digest = hashlib.sha256(file.text.encode()).hexdigest()
    if digest in _loaded:
        return
    name = f"ifsq_plugin_{Path(file.name).stem}_{digest[:8]}"
    kinds = _kinds_of(_run(name, file, path))
    if not kinds:
        sys.modules.pop(name, None)
        raise UserError(
            f"plug-in {path} declares no kind; give it a module-level QuantizerKind, ViewKind,"
            " TaskKind, GeneratorKind, SourceKind or TrackerKind (docs/extending.md)"
        )
    register(kinds, file.name)
    _loaded[digest] = file


def _run(name: str, file: PluginFile, path: str) -> ModuleType:
    spec = importlib.util.spec_from_loader(name, _TextLoader(file, path), origin=path)
    assert spec is not None
    assert spec.loader is not None
    spec.has_location = True  # gives the module its __file__, by which its source is found
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pydantic look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if not isinstance(error, _ITS_OWN) and type(error).__module__ != name:
            raise
        raise UserError(f"plug-in {path} cannot be run: {_reason(error)}") from error
    return module


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # the plug-in's own class may not be able to say it
        text = "it has no text"
    return f"{type(error).__name__}: {' '.join(text.split())[:_LONGEST_REASON]}"


def _kinds_of(module: ModuleType) -> list[Kind]:
    return [value for value in vars(module).values() if isinstance(value, Kind)]
