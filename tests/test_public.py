"""The names that a script imports from the packages themselves."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from karpa_tf.errors import UserError
from karpa_tf.settings import Fields
from tests.documents import LAZY, PACKAGES


def sections(doc: str) -> dict[str, str]:
    """The sections of a docstring in Google's form, by their names."""
    found = re.findall(r"^(Args|Attributes|Returns|Yields|Raises):\n((?:[ \t]+.*\n?|\n)*)", doc, re.MULTILINE)
    return dict(found)


def public() -> dict[str, Any]:
    """Every public function and class, by its full name."""
    modules = {name: import_module(f"karpa_tf.{name}") for name in PACKAGES}
    return {
        f"{name}.{public}": found
        for name, module in modules.items()
        for public in module.__all__
        if inspect.isclass(found := getattr(module, public)) or inspect.isfunction(found)
    }


def parameters(function: Any) -> list[str]:
    every = inspect.signature(function).parameters.values()
    return [p.name for p in every if p.name not in ("self", "cls", "_", "args", "kwargs")]


def raised(function: Any) -> set[str]:
    """The errors that a function itself raises, as its source says."""
    source = textwrap.dedent(inspect.getsource(function))
    return set(re.findall(r"raise (UserError|ValueError)\(", source))


def own_methods(cls: type) -> Iterator[tuple[str, Any, str]]:
    """Yields name, function and docstring of the public methods and properties that others did not invent."""
    for name, value in vars(cls).items():
        above = [base for base in cls.__mro__[1:] if hasattr(base, name)]
        function = inspect.unwrap(getattr(value, "__func__", None) or getattr(value, "fget", None) or value)
        function = getattr(function, "func", function)  # a cached property's
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        if not any(not base.__module__.startswith("karpa_tf") for base in above):
            yield name, function, inspect.getdoc(getattr(cls, name) if above else function) or ""


def gaps(name: str, found: Any) -> Iterator[str]:
    """Yields what the docstrings of a function, or of a class and its methods, leave unsaid."""
    doc = inspect.getdoc(found) or ""
    named = sections(doc)
    if inspect.isfunction(found):
        yield from (
            f"{name}: argument {p}" for p in parameters(found) if f"    {p}: " not in named.get("Args", "")
        )
        says = (
            "Returns" in named or "Yields" in named or re.match("Returns|Whether", doc) or "Output: " in doc
        )
        if inspect.signature(found).return_annotation not in (None, "None") and not says:
            yield f"{name}: what it returns"
        yield from (f"{name}: raises {e}" for e in raised(found) if e not in named.get("Raises", ""))
        return
    if dataclasses.is_dataclass(found):
        fields = [] if issubclass(found, Fields) else [field.name for field in dataclasses.fields(found)]
        yield from (
            f"{name}: {field}" for field in fields if f"    {field}: " not in named.get("Attributes", "")
        )
    elif "__init__" in vars(found):
        yield from (
            f"{name}: argument {p}" for p in parameters(found) if f"    {p}: " not in named.get("Args", "")
        )
    for hook in filter(None, (vars(found).get("__init__"), vars(found).get("__post_init__"))):
        if inspect.getsourcefile(hook) != inspect.getsourcefile(found):
            continue  # that of a dataclass
        yield from (f"{name}: raises {e}" for e in raised(hook) if e not in doc + (hook.__doc__ or ""))
    for method, function, said in own_methods(found):
        if not said:
            yield f"{name}.{method}: everything"
            continue
        yield from (
            f"{name}.{method}: argument {p}" for p in parameters(function) if not re.search(rf"\b{p}\b", said)
        )
        yield from (f"{name}.{method}: raises {e}" for e in raised(function) if e not in said)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_imports(name: str) -> None:
    package = import_module(f"karpa_tf.{name}")
    assert package.__all__
    for public in package.__all__:
        assert getattr(package, public) is not None
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from karpa_tf.{name} import nothing")


@pytest.mark.parametrize(("name", "found"), public().items())
def test_every_public_name_says_what_it_takes_gives_and_raises(name: str, found: Any) -> None:
    doc = inspect.getdoc(found) or ""
    # A dataclass without a docstring gets its signature for one.
    assert doc and not doc.startswith(f"{found.__name__}(")
    assert list(gaps(name, found)) == []


def test_what_is_left_unsaid_is_found() -> None:
    def returns(a: int, b: int) -> int:
        """Adds.

        Args:
            a: a number.

        Raises:
            ValueError: it is too large.
        """
        if a > 9:
            raise ValueError(a)
        raise UserError("no")

    class Holder:
        """Holds."""

        def __init__(self, a: int) -> None:
            self.a = a

        def more(self, b: int) -> int:
            """Returns the sum of both."""
            return self.a + b

        def less(self) -> int:
            return self.a

    assert list(gaps("f", returns)) == ["f: argument b", "f: what it returns", "f: raises UserError"]
    assert list(gaps("H", Holder)) == ["H: argument a", "H.more: argument b", "H.less: everything"]


@pytest.mark.parametrize("name", LAZY)
def test_type_checkers_see_the_same_names(name: str) -> None:
    package = import_module(f"karpa_tf.{name}")
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = [alias.asname for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted(map(str, seen)) == sorted(package.__all__)


def test_the_packages_by_themselves_import_no_tensorflow() -> None:
    imports = "; ".join(f"import karpa_tf.{name}" for name in PACKAGES)
    code = f"import sys; {imports}; assert not {{'tensorflow', 'keras', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
