"""Keeps gradio from writing stub files while it is imported.

For every component class gradio 6 parses the class's source, renders an interface and compares it with a ``.pyi`` file
beside the source, at each start anew: a third of the time that importing it takes, and files in our own tree that a
type checker would prefer to the source.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

_MODULE, _WRITER = "gradio.component_meta", "create_or_modify_pyi"


def write_no_stubs() -> None:
    """Call it before gradio is imported; where that has happened already it holds for the components that follow."""
    if (loaded := sys.modules.get(_MODULE)) is not None:
        _replace_writer(loaded)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _replace_writer(module: ModuleType) -> None:
    # A version that has no such function writes its stubs elsewhere, or none.
    if hasattr(module, _WRITER):
        setattr(module, _WRITER, _write_nothing)


def _write_nothing(component_class: type, class_name: str, events: Sequence[object]) -> None:
    """In the writer's place."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module as it would be found anyway, and has the writer replaced as soon as it is executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _replace_writer(module)
