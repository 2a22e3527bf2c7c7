"""Names of a package that are imported when they are asked for: with TensorFlow that takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def public(package: str, modules: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """Returns `__all__` and `__getattr__` of a package.

    Args:
        package: its name.
        modules: the names by the module that has them, written as for `import_module`: `.text`.
    """
    places = {name: module for module, names in modules.items() for name in names.split()}

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(places[name], package), name)

    return list(places), get
