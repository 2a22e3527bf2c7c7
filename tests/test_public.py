"""The names that a script imports from the packages themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

# Whose names are imported when they are asked for; and plain modules.
LAZY = ["data", "export", "models", "reports", "serving", "training"]
PACKAGES = [*LAZY, "errors", "recipe", "settings"]


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_imports_and_says_what_it_is(name: str) -> None:
    package = import_module(f"karpa_tf.{name}")
    assert package.__all__
    for public in package.__all__:
        found = getattr(package, public)
        # A dataclass without a docstring gets its signature for one.
        assert found.__doc__ and not found.__doc__.startswith(f"{public}("), public
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec(f"from karpa_tf.{name} import nothing")


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
