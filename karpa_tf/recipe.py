"""The contract of a recipe, and finding recipes: shipped ones, those of installed packages, a user's own.

Nothing here is heavy to import: the command line reads `About` before TensorFlow is imported.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.lines import InALine
from karpa_tf.settings import Count, Fields, NonNegative, RunSettings, Seed, option, read_settings

if TYPE_CHECKING:
    import numpy as np

    from karpa_tf.export.signature import Signature
    from karpa_tf.judging.by_row import ByRow
    from karpa_tf.training.run import Run
    from karpa_tf.training.run_folder import RunFolder

__all__ = [
    "About",
    "EvaluateOptions",
    "Evaluation",
    "ExplainOptions",
    "Explanation",
    "ExportOptions",
    "Exported",
    "Input",
    "PredictOptions",
    "Recipe",
    "RecipeFolder",
    "all_recipes",
    "find_recipe",
]

# The group of entry points by which an installed package names recipes of its own.
GROUP = "karpa_tf.recipes"

SHIPPED = Path(__file__).parent / "recipes"

Settings = TypeVar("Settings", bound=RunSettings)


# --- What the command line reads of a recipe ------------------------------------------------------

# What a value of an input is: a text, an image (the path of its file, or nested lists), or other JSON.
Kind = Literal["text", "image", "json"]


@dataclass(frozen=True)
class Input:
    """An input of a signature.

    Attributes:
        kind: what its values are.
        column: the column that a run was trained on; empty: the one of the input's name.
    """

    kind: Kind
    column: str = ""


@dataclass(kw_only=True)
class EvaluateOptions(Fields):
    """The options of `karpa-tf evaluate` that every recipe takes; a recipe's own go into a subclass."""

    data: str = option("", "Other data than the run's own test split.")


@dataclass(kw_only=True)
class PredictOptions(Fields):
    """The same of `karpa-tf predict`."""


@dataclass(kw_only=True)
class ExplainOptions(Fields):
    """The same of `karpa-tf explain`."""


@dataclass(kw_only=True)
class PlayOptions(Fields):
    """The same of `karpa-tf play`."""

    gif: str = option("play.gif", "The film to write: a .gif, or a .mp4 where ffmpeg is on the PATH.")
    episodes: Count = option(1, "Episodes to play.")
    seed: Seed = option(1_000_000_000, "Seed of the first episode: that of evaluate's; the others count on.")
    fps: NonNegative = option(0.0, "Pictures a second; 0: as many as the environment has steps.")
    frames: Count = option(500, "Most pictures in the film; what comes later is played and not shown.")


@dataclass(kw_only=True)
class ExportOptions(Fields):
    """The same of `karpa-tf export`."""

    to: str = option("savedmodels", "Where models live.")
    force: bool = option(False, "Export even a model that has not learned its task.")


UPDATES = "updates"


@dataclass(frozen=True, kw_only=True, repr=False)
class About(InALine):
    """What is said of a recipe before TensorFlow is imported.

    Attributes:
        summary: a line.
        default_data: what it learns from if nothing is said.
        settings: its settings.
        inputs: the inputs of a run's signature by name, from the values of its settings.
        evaluate: its options there, as the following are.
        predict: see `evaluate`.
        export: see `evaluate`.
        explain: None: it has no explanations.
        play: None: it has no policy.
        legacy_keras: whether training and exporting need TensorFlow imported with TF_USE_LEGACY_KERAS=1.
        steps: what the steps of its curves count. Where that is not updates of the weights, all tags begin
            with the recipe's name: TensorBoard draws a tag of all runs on one chart.
        charts: of TensorBoard's custom scalars, a title and its tags each (`epoch/NAME`, if steps are
            updates). The first tag is that of the main figure of a training.
        figure: that figure's name in the final figures; empty: the first of these.
        rows: returns the rows that `predict` answers where none are given, from its options and the run's
            folder; None: they must be given.
        pictures: whether `predict` gives an `image`, so that all of them make a .png.
    """

    summary: str
    default_data: str
    settings: type[RunSettings]
    inputs: Callable[[Mapping[str, Any]], dict[str, Input]]
    evaluate: type[EvaluateOptions] = EvaluateOptions
    predict: type[PredictOptions] = PredictOptions
    export: type[ExportOptions] = ExportOptions
    explain: type[ExplainOptions] | None = None
    play: type[PlayOptions] | None = None
    legacy_keras: bool = False
    steps: str = UPDATES
    charts: Mapping[str, Sequence[str]] = field(default_factory=lambda: {"loss": ["epoch/loss"]})
    figure: str = ""
    rows: Callable[[Any, RunFolder], list[dict[str, Any]]] | None = None
    pictures: bool = False


# --- The contract ---------------------------------------------------------------------------------


@dataclass(kw_only=True, repr=False)
class Evaluation(InALine):
    """What a run reaches.

    Attributes:
        data: on what, for people.
        metrics: its figures.
        baselines: those of others on the same data, by their names.
        facts: what else there is to know.
        tables: lines of each table to print.
        by_row: returns figures row by row, for comparing runs on the same rows; {}: there are no such rows.
        more: further keys of the JSON object.
    """

    data: str
    metrics: dict[str, float]
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: list[Sequence[str]] = field(default_factory=list)
    by_row: Callable[[], dict[str, ByRow]] = dict
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, repr=False)
class Exported(InALine):
    """What was written.

    Attributes:
        format: `savedmodel` or another.
        path: of the model.
        signatures: what it takes and gives.
        lines: to print.
        more: further keys of the JSON object.
    """

    format: str
    path: str
    signatures: dict[str, Any]
    lines: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, repr=False)
class Explanation(InALine):
    """What speaks for what a run says of inputs.

    Attributes:
        explanations: one or several an input, for the JSON object.
        lines: to print.
        more: further keys of the JSON object.
    """

    explanations: list[dict[str, Any]]
    lines: list[str]
    more: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, repr=False)
class Played(InALine):
    """Episodes that were played and filmed.

    Attributes:
        path: of the film.
        frames: its pictures.
        returns: of the episodes, not discounted.
        lengths: in steps.
        figures: that the environment gives of each, by name.
    """

    path: str
    frames: int
    returns: list[float]
    lengths: list[int]
    figures: list[Mapping[str, float]]


class Recipe(InALine, ABC, Generic[Settings]):
    """A system: how it trains, is evaluated, and what it serves."""

    about: ClassVar[About]
    # Threads that TensorFlow uses in training; None: as many as there are cores.
    threads: ClassVar[int | None] = None

    def start(
        self, settings: Settings, folder: RunFolder, *, resume: bool = False, pause: int = 0
    ) -> dict[str, float]:
        """Trains into a run folder and returns the final figures; with `folds` or `curve`, several runs.

        Args:
            settings: of the run.
            folder: where it is written.
            resume: go on from its newest checkpoint.
            pause: stop after so much of its length, before the final figures; 0: train to the end.

        Raises:
            UserError: a setting, the data or the folder cannot be used.
            Paused: it was paused.
        """
        from karpa_tf.training.run import Run

        if getattr(settings, "folds", 0) and not getattr(settings, "fold", 0):
            from karpa_tf.recipes.families.folds import cross_validate

            return cross_validate(self, settings, folder, resume=resume)
        if getattr(settings, "curve", ""):
            from karpa_tf.recipes.families.folds import learning_curve

            return learning_curve(self, settings, folder, resume=resume)
        run = Run(folder, settings, resume=resume, pause=pause, threads=self.threads, about=self.about)
        with run.noting_its_end():
            metrics = self.train(run)
            if not isinstance(metrics, dict):
                raise UserError(
                    f"{type(self).__name__}.train must return figures by name, those of run.finish. "
                    f"Received: {metrics!r}."
                )
            if run.chief:
                from karpa_tf.recipes.families.costs import compare_with_parents, parents_of

                if parents := parents_of(folder, settings):
                    run.say("Measuring what it costs beside the runs that it comes of")
                    compare_with_parents(self, folder, parents)
        return metrics

    @abstractmethod
    def train(self, run: Run[Settings]) -> dict[str, float]:
        """Trains and returns the final figures, those of `run.finish`.

        Args:
            run: its settings and folder, and what every training does alike.
        """

    @abstractmethod
    def evaluate(self, folder: RunFolder, options: Any, step: int | None = None) -> Evaluation:
        """Returns the figures of a run's best weights on held-out data.

        Args:
            folder: of the run.
            options: of the command, e.g. other data.
            step: at the end of a training: the last step, under which TensorBoard shows what is found.
        """

    @abstractmethod
    def signature(self, folder: RunFolder, options: Any) -> Signature:
        """Returns what a run predicts with.

        Args:
            folder: of the run.
            options: of the command.
        """

    @abstractmethod
    def export(self, folder: RunFolder, options: Any) -> Exported:
        """Writes the next version of a model.

        Args:
            folder: of the run.
            options: of the command: where to, in which format.
        """

    def served_rows(self, folder: RunFolder, count: int) -> dict[str, np.ndarray]:
        """Returns held-out rows as a run's signature takes them; only where runs come of others.

        Args:
            folder: of the run.
            count: rows at most.

        Returns:
            Arrays (n, ...) by input.
        """
        raise NotImplementedError

    def validation_rows(self, folder: RunFolder) -> tuple[dict[str, np.ndarray], list[str]]:
        """Returns validation rows as a run's signature takes them, arrays by input, and their labels.

        Args:
            folder: of the run.

        Returns:
            No labels where a recipe is no classifier of rows.
        """
        return {}, []

    def reference(self, folder: RunFolder, signature: Signature) -> None:
        """Keeps in a run's assets what its signature says of validation rows, if that is not there yet.

        Args:
            folder: of the run.
            signature: that it predicts with.
        """
        from karpa_tf.recipes.families import references

        if not (folder.assets / references.REFERENCE).is_file():
            references.keep(folder, signature, *self.validation_rows(folder))

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: Any) -> Explanation:
        """Says what in inputs speaks for what a run says of them; only where `about.explain` is given.

        Args:
            folder: of the run.
            inputs: texts, or the paths of images.
            options: of the command.
        """
        raise NotImplementedError

    def play(self, folder: RunFolder, options: Any) -> Played:
        """Plays episodes with a run's policy and films them; only where `about.play` is given.

        Args:
            folder: of the run.
            options: of the command.
        """
        raise NotImplementedError


# --- Finding recipes ------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class RecipeFolder(InALine):
    """A recipe's folder.

    `__init__.py` has its settings, its options and `ABOUT`, and imports nothing heavy; `recipe.py` has one
    subclass of Recipe; beside them lie YAML files of settings.

    Attributes:
        name: of the folder, with - for _.
        package: its name for `import`.
        own: whether it was named by its path, which its runs remember then.
    """

    name: str
    package: str
    own: bool = False

    @functools.cached_property
    def path(self) -> Path:
        """The folder; a UserError where there is no such package."""
        try:
            spec = importlib.util.find_spec(self.package)
        except ModuleNotFoundError:  # the package that it is in
            spec = None
        if spec is None or not spec.submodule_search_locations:
            raise UserError(f"There is no package {self.package}, which {GROUP} names as recipe {self.name}.")
        return Path(spec.submodule_search_locations[0])

    @functools.cached_property
    def about(self) -> About:
        """What it says of itself; a UserError where it says nothing."""
        file = self.path / "__init__.py"  # first, for it says what is missing
        about = getattr(importlib.import_module(self.package), "ABOUT", None)
        if not isinstance(about, About):
            raise UserError(f"{file} must have `ABOUT = About(...)`, of karpa_tf.recipe.")
        return about

    def load(self) -> Recipe[Any]:
        """Imports the recipe's code, and with it TensorFlow; returns the recipe.

        Raises:
            UserError: there is no subclass of Recipe in it, or more than one.
        """
        module = importlib.import_module(f"{self.package}.recipe")
        found = [x for x in vars(module).values() if _is_recipe(x, module)]
        if len(found) != 1:
            names = ", ".join(x.__name__ for x in found) or "none"
            raise UserError(f"{self.path / 'recipe.py'} must have one subclass of Recipe. Received: {names}.")
        return found[0]()

    def expected(self) -> str:
        """What the default settings reach and how long they take: the header of their YAML file."""
        path = self.path / "default.yaml"
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        header = [line.lstrip("# ") for line in lines if line.startswith("# Expected:")]
        return header[0].removeprefix("Expected:").strip() if header else ""

    def shipped_settings(self) -> list[str]:
        """Names that `--config` takes, e.g. `["default", "essay", "quickstart"]`."""
        return sorted(path.stem for path in self.path.glob("*.yaml"))

    def read_settings(self, name_or_path: str) -> dict[str, Any]:
        """Reads a file of settings.

        Args:
            name_or_path: the name of a shipped file, or the path of a user's.

        Raises:
            UserError: no such file, not YAML, or fields or values that the recipe does not take.
        """
        names = self.shipped_settings()
        path = self.path / f"{name_or_path}.yaml" if name_or_path in names else Path(name_or_path)
        if not path.exists() or path.is_dir():
            raise UserError(
                f'--config: "{name_or_path}" is neither a file nor shipped settings of {self.name}'
                f"{did_you_mean(name_or_path, names)} Shipped: {', '.join(names)}."
            )
        return read_settings(path, self.about.settings, self.name)


def _is_recipe(value: Any, module: ModuleType) -> bool:
    return isinstance(value, type) and issubclass(value, Recipe) and value.__module__ == module.__name__


@functools.cache
def all_recipes() -> dict[str, RecipeFolder]:
    """Returns the recipes that have a name: the shipped ones, then those of installed packages."""
    import importlib.metadata

    found = {}
    for file in sorted(SHIPPED.glob("*/recipe.py")):
        name = _name(file.parent)
        found[name] = RecipeFolder(name, f"karpa_tf.recipes.{file.parent.name}")
    for entry in importlib.metadata.entry_points(group=GROUP):
        found.setdefault(entry.name, RecipeFolder(entry.name, entry.value))
    return found


def find_recipe(name_or_path: str) -> RecipeFolder:
    """Returns the recipe of a name, or the one in a folder.

    Args:
        name_or_path: `mnist-mlp`; or a path that has a / in it or begins with a point: `./sentiment`.

    Raises:
        UserError: there is none.
    """
    if os.sep in name_or_path or name_or_path.startswith("."):
        return _recipe_in(Path(name_or_path))
    recipes = all_recipes()
    if name_or_path not in recipes:
        near = did_you_mean(name_or_path, recipes)
        if (Path(name_or_path) / "recipe.py").is_file():
            near = f'; did you mean "./{name_or_path}"?'
        raise UserError(f'There is no recipe "{name_or_path}"{near} Known: {", ".join(recipes)}.')
    return recipes[name_or_path]


def recipe_of(folder: RunFolder) -> RecipeFolder:
    """Returns the recipe that a run is of.

    Raises:
        UserError: there is none, or the user's own is gone.
    """
    if folder.code:
        if not (Path(folder.code) / "recipe.py").is_file():
            raise UserError(
                f"{folder.path} was trained by the recipe in {folder.code}, which is gone: bring that folder "
                f"back, or go on with `karpa-tf train NEW_PLACE --resume {folder.path}`."
            )
        return _recipe_in(Path(folder.code))
    if folder.recipe not in all_recipes():
        raise UserError(
            f'{folder.path} lies in a folder "{folder.recipe}", which is no recipe: a run lies in '
            f"LOGS/RECIPE/NUMBER, and RECIPE is one of {', '.join(all_recipes())}."
        )
    return find_recipe(folder.recipe)


def copy_recipe(like: RecipeFolder, target: Path) -> str:
    """Makes a folder with a copy of a recipe, and returns the name of the new one.

    Raises:
        UserError: there is something of that name already, or it is none.
    """
    name = _name(target.absolute())
    if not re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UserError(f"A recipe's name has small letters, digits, - and _. Received: {target.name}.")
    if name in all_recipes():
        raise UserError(f"There is a recipe {name} already; choose another name.")
    if target.exists():
        raise UserError(f"{target} exists already; choose another name.")
    try:
        shutil.copytree(like.path, target, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}.") from error
    return name


def _name(folder: Path) -> str:
    return folder.name.replace("_", "-")


def recipe_name(name_or_path: str) -> str:
    """Returns the name of a recipe that is given by it, or by the path of its folder."""
    return _name(Path(name_or_path).resolve()) if os.sep in name_or_path else name_or_path


def _recipe_in(folder: Path) -> RecipeFolder:
    path = folder.resolve()
    for file in ("__init__.py", "recipe.py"):
        if not (path / file).is_file():
            raise UserError(
                f"{folder} is no recipe: it has no {file}; `karpa-tf new` makes a folder that is one."
            )
    if _name(path) in all_recipes():
        raise UserError(f"There is a recipe {_name(path)} already; give the folder {folder} another name.")
    package = f"karpa_tf_recipe_{hashlib.blake2b(bytes(path), digest_size=8).hexdigest()}"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            package, path / "__init__.py", submodule_search_locations=[str(path)]
        )
        assert spec is not None and spec.loader is not None
        sys.modules[package] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[package]
            raise
    return RecipeFolder(_name(path), package, own=True)
