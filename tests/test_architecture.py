"""Who may import what (docs/architecture.md), read from the sources: nothing is imported for it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "karpa_tf"

_BELOW_RECIPES = (
    "settings recipe data errors export judging lines meta models private reports rl rows training wordpiece"
)

# What a module or package may import of karpa_tf, beside itself, at the top of a file or within a function.
# Imports for type checkers alone are none. Every module has a row: the longest name that fits it.
ARROWS = {
    "errors": "",
    "lazy": "",
    "lines": "",
    "quiet": "errors",
    "private": "",
    "privacy": "",
    "wordpiece": "errors lines",
    "settings": "errors",
    "recipe": "errors lines settings recipes.families.costs recipes.families.folds "
    "recipes.families.references training",
    "data": "errors lazy lines privacy wordpiece",
    "models": "errors lazy lines private wordpiece",
    "rl": "errors lines private",
    "meta": "errors lazy lines private data training.fitting training.step",
    "judging": "errors lines",
    "reports": "errors judging lazy lines private quiet",
    "training": "errors lazy lines settings recipe data.batches private reports",
    "export": "errors lazy lines quiet",
    "serving": "errors lazy lines privacy settings",
    "watching": "errors lazy lines judging.reference privacy serving settings",
    "compare": "errors lines recipe settings judging reports training",
    "report": "errors judging recipe reports settings training",
    "search": "errors lines settings recipe judging reports training",
    "parser": "errors settings",
    "rows": "errors data recipe",
    "recipes.families": _BELOW_RECIPES,
    "recipes": f"recipes.families {_BELOW_RECIPES}",  # no recipe imports another one
    "doctor": "data.text export recipe serving training",
    "child_runs": "parser settings recipe errors training",
    "cli": "child_runs compare report parser settings recipe doctor errors export quiet reports rows search "
    "serving training watching",
    "__main__": "cli",
    "__init__": "",
}

# Who alone may import some libraries; `tf.summary` is TensorBoard's part of TensorFlow.
LIBRARIES = {
    "keras": "doctor export meta models recipes reports search training",
    "keras_hub": "models",
    "PIL": "data meta reports rl",
    "tensorflow_datasets": "data",
    "sklearn": "judging",
    "seqeval": "judging",
    "tensorboard": "reports",
    "tf.summary": "recipes reports",
    "matplotlib": "meta reports",
    "tqdm": "reports",
    "tf_agents": "rl",
    "tf_keras": "rl",
    "aiohttp": "serving",
    "grpc": "serving",
    "prometheus_client": "serving watching",
}

# Files that use names with an underscore which they did not make: private parts of somebody else's.
PRIVATE = {
    "private.py": "Keras' and TF-Agents', a test each in tests/test_private.py",
    "rl/dqn.py": "what TF-Agents' subclasses override",
}


def sources() -> Iterator[tuple[Path, str, ast.Module]]:
    """Yields each file of the package, its dotted name below `karpa_tf`, and what is in it."""
    for path in sorted(PACKAGE.rglob("*.py")):
        file = path.relative_to(PACKAGE)
        parts = file.with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)
        yield file, name, ast.parse(path.read_text(encoding="utf-8"))


def imports(file: Path, tree: ast.Module) -> Iterator[str]:
    """Yields the full names of what a file imports, but for types alone."""
    blocks = (n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    for_types = {node for block in blocks for node in ast.walk(block)}
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = ("karpa_tf", *file.parts[:-1])[: len(file.parts) + 1 - node.level] if node.level else ()
            yield from (".".join([*above, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "tf.summary":
            yield "tf.summary"


def is_in(name: str, packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages.split())


def test_every_import_is_an_arrow_of_the_table() -> None:
    wrong = []
    for file, name, tree in sources():
        row = max((row for row in ARROWS if is_in(name, row)), key=len, default=None)
        assert row is not None, f"{name} needs a row in ARROWS"
        own = ".".join(name.split(".")[:2]) if row == "recipes" else row
        for imported in imports(file, tree):
            package, _, inner = imported.partition(".")
            if package == "karpa_tf" and inner != "__version__" and not is_in(inner, f"{own} {ARROWS[row]}"):
                wrong.append(f"{file} imports {imported}")
    assert wrong == []


def test_libraries_are_imported_where_they_belong() -> None:
    wrong = [
        f"{file} imports {imported}"
        for file, name, tree in sources()
        for imported in imports(file, tree)
        for library, users in LIBRARIES.items()
        if is_in(imported, library) and not is_in(name, users)
    ]
    assert wrong == []


def test_private_parts_of_others_stand_in_their_files() -> None:
    wrong = []
    for file, _, tree in sources():
        nodes = list(ast.walk(tree))
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        own |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        read = [node for node in nodes if isinstance(node, ast.Attribute)]
        own |= {node.attr for node in read if isinstance(node.ctx, ast.Store)}
        own |= {node.value for node in nodes if isinstance(node, ast.Constant)}  # object.__setattr__
        own |= {"_exit", "_replace"}  # the standard library's, and documented
        for node in read:
            if node.attr.startswith("_") and not node.attr.endswith("__") and node.attr not in own:
                wrong.append((str(file), ast.unparse(node)))
    assert [use for use in wrong if use[0] not in PRIVATE] == []
    assert {file for file, _ in wrong} == set(PRIVATE), "a row of PRIVATE is not needed"


def test_no_test_imports_a_test() -> None:
    files = Path(__file__).parent.rglob("*.py")
    found = {str(file): re.findall(r"^from (tests\S*\.test_\w+)", file.read_text(), re.M) for file in files}
    assert {file: modules for file, modules in found.items() if modules} == {}
