"""The verbs that make a run of other runs: what their words mean, as the settings of the new run.

What such a run does stands in its recipe's family; the command line starts it.
"""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from karpa_tf.errors import UserError
from karpa_tf.parser import Parser, help_of
from karpa_tf.recipe import RecipeFolder, all_recipes, find_recipe, recipe_of
from karpa_tf.settings import RunSettings, types_of

if TYPE_CHECKING:
    from karpa_tf.training.run_folder import RunFolder

SUMMARIES = {
    "ensemble": "Make one run of several: the mean of their probabilities.",
    "interpolate": "Make a run between two others, or a soup of several: the mean of their weights.",
    "distill": "Train a smaller network with a run as its teacher.",
    "prune": "Train a run further with a share of its weights, heads or neurons removed.",
}


class Child(NamedTuple):
    """A run that is to be made.

    Attributes:
        recipe: its recipe.
        settings: its settings.
        typed: those of them that were typed.
        args: all that was typed.
    """

    recipe: RecipeFolder
    settings: RunSettings
    typed: Mapping[str, Any]
    args: Namespace


def ensemble(words: Sequence[str]) -> Child:
    """Makes a run that is the mean of others, with the settings of the first one."""
    parser = _parser("ensemble", {"runs*": "Two runs of one recipe at least, by their folders."})
    joining = [recipe for recipe in all_recipes().values() if "ensemble" in types_of(recipe.about.settings)]
    fields = {field.name: field for field in dataclasses.fields(joining[0].about.settings)}
    parser.add_field("--weights", types_of(joining[0].about.settings)["weights"], help_of(fields["weights"]))
    args = parser.read(words)
    if len(args.runs) < 2:
        raise UserError(f"ensemble takes two runs at least. Received: {', '.join(args.runs) or 'none'}.")
    first, recipe, paths = _runs_of_one_recipe("ensemble", "ensemble", args)
    config: Any = first.open_config(recipe.about.settings)
    config = config.joined(",".join(paths), getattr(args, "weights", "equal"))
    args.seeds = None
    return Child(recipe, config, {}, args)


def interpolate(words: Sequence[str]) -> Child:
    """Makes a run whose weights are a mean of others', with the settings of the first one."""
    parser = _parser("interpolate", {"runs*": "Two runs of one recipe, M1 and M2; with --soup more."})
    taking = [recipe for recipe in all_recipes().values() if "average" in types_of(recipe.about.settings)]
    fields = {field.name: help_of(field) for field in dataclasses.fields(taking[0].about.settings)}
    help = fields["lambdas"].removeprefix("average: ").capitalize().replace("; or soup", "")
    parser.add_field("--lambda", str, help)
    parser.add_field("--data2", str, fields["data2"].removeprefix("average: ").capitalize())
    parser.add_field(
        "--decide", types_of(taking[0].about.settings)["decide"], fields["decide"][9:].capitalize()
    )
    parser.add_argument("--soup", action="store_true", help="The mean of all runs, and the greedy soup.")
    parser.flags.append("--soup")
    args = parser.read(words)
    given = {flag: getattr(args, flag, "") for flag in ("lambda", "data2")}
    if len(args.runs) < 2 or (len(args.runs) > 2 and not args.soup):
        raise UserError(
            f"interpolate takes two runs; with --soup more. Received: {', '.join(args.runs) or 'none'}."
        )
    if args.soup and given["lambda"]:
        raise UserError("--lambda goes with two runs, and --soup has no lambda: leave one out.")
    first, recipe, paths = _runs_of_one_recipe("interpolate", "average", args)
    settings: Any = first.open_config(recipe.about.settings)
    config = settings.averaging(
        ",".join(paths),
        lambdas="soup" if args.soup else given["lambda"] or "0:1:0.1",
        decide=getattr(args, "decide", "all"),
        data2=given["data2"],
    )
    args.seeds = None
    return Child(recipe, config, {}, args)


def _runs_of_one_recipe(verb: str, field: str, args: Namespace) -> tuple[RunFolder, RecipeFolder, list[str]]:
    """Returns the first of several finished runs, the recipe of all, and their paths."""
    found = [_open(run, args.logs) for run in args.runs]
    first, recipe = found[0]
    for folder, other in found:
        if field not in types_of(other.about.settings):
            raise _takes(verb, field, other)
        if other.name != recipe.name:
            raise UserError(
                f"{first.path} and {folder.path} are runs of different recipes, {recipe.name} and "
                f"{other.name}: {verb} takes runs of one."
            )
        folder.final_metrics()
    return first, recipe, [str(folder.path.resolve()) for folder, _ in found]


def distill(words: Sequence[str]) -> Child:
    """Trains a smaller network with a run as its teacher."""
    folder, recipe = _first_run("distill", words)
    into = _parser("distill")
    into.add_field("--into", str, "")
    asked, _ = into.read_known([word for word in words[1:] if word not in ("--help", "-h")])
    teachers, recipe = recipe, find_recipe(asked.into) if "into" in asked else recipe
    for one in (teachers, recipe):
        if "teacher" not in types_of(one.about.settings):
            raise _takes("distill", "teacher", one)
    kind = recipe.about.settings
    parser = _child_parser("distill", recipe)
    parser.add_field("--into", str, "The recipe that learns, of the same signature. (default: the run's own)")
    for field in dataclasses.fields(kind):
        if field.name not in ("teacher", "ensemble", "weights"):
            parser.add_field(f"--{field.name}", types_of(kind)[field.name], help_of(field))
    args = parser.read(words[1:])
    folder.final_metrics()
    typed = {name: value for name, value in vars(args).items() if name in types_of(kind)}
    before: Any = folder.open_config(teachers.about.settings)
    values = before.student(str(folder.path.resolve()), folder.assets, kind)
    if (
        teachers.name == recipe.name
        and not before.ensemble
        and not {**before.smaller(folder.assets), **typed}
    ):
        raise UserError(
            f"Say what is smaller than {folder.path}: a field of `karpa-tf train {recipe.name} --help`."
        )
    return Child(recipe, kind(**{**values, **typed}), typed, args)


def _takes(verb: str, field: str, recipe: RecipeFolder) -> UserError:
    """Returns the error of a recipe whose runs a verb does not take: their settings lack a field."""
    takers = [one.name for one in all_recipes().values() if field in types_of(one.about.settings)]
    return UserError(f"{verb} does not go with {recipe.name}; it goes with {', '.join(takers)}.")


# What `prune` removes a share of, and the setting of the new run that holds it.
REMOVED = {"--sparsity": "sparsity", "--heads": "prune_heads", "--neurons": "prune_neurons"}


def prune(words: Sequence[str]) -> Child:
    """Trains a run's recipe from its weights, of which a share goes."""
    folder, recipe = _first_run("prune", words)
    kind = recipe.about.settings
    fields, helps = types_of(kind), {field.name: help_of(field) for field in dataclasses.fields(kind)}
    takers = {
        flag: [x.name for x in all_recipes().values() if name in types_of(x.about.settings)]
        for flag, name in REMOVED.items()
    }
    if "sparsity" not in fields:
        raise _takes("prune", "sparsity", recipe)
    removed = {flag: name for flag, name in REMOVED.items() if name in fields}
    parser = _child_parser("prune", recipe)
    for flag, name in removed.items():
        parser.add_field(flag, fields[name], helps[name])
    for name in fields:
        if f"--{name}" not in removed and name not in ("init", *removed.values()):
            parser.add_field(f"--{name}", fields[name], helps[name])

    def elsewhere(flag: str) -> str:
        if flag not in takers:
            return ""
        none = f"A network of {recipe.name} has no {flag[2:]} that can be removed"
        return f"{none}; {flag} goes with {', '.join(takers[flag])}."

    args = parser.read(words[1:], elsewhere)
    shares = {name: getattr(args, flag[2:], 0.0) for flag, name in removed.items()}
    if not any(shares.values()):
        raise UserError(f"prune takes {' or '.join(removed)}, a share above 0.")
    if shares["sparsity"] and sum(map(bool, shares.values())) > 1:
        raise UserError(
            "--sparsity does not go with --heads and --neurons: prune twice, the second time the run that "
            "came of the first."
        )
    folder.final_metrics()
    if not folder.has_weights:
        raise UserError(f"{folder.path} has no weights any more; train it again.")
    typed = {n: value for n, value in vars(args).items() if n in fields and f"--{n}" not in removed}
    config: Any = folder.open_config(kind)
    config = dataclasses.replace(
        config, **{**config.of_pruned(), **shares, **typed, "init": str(folder.path)}
    )
    return Child(recipe, config, typed, args)


def _first_run(verb: str, words: Sequence[str]) -> tuple[RunFolder, RecipeFolder]:
    """Returns the run that the words of a verb begin with, and its recipe, which knows the other words."""
    if not words or words[0].startswith("-"):
        first = f"karpa-tf {verb}: RUN comes before its options."
        _parser(verb, {"run": "A run's folder, or RECIPE/latest; with it --help lists all."}).read(
            words, lambda flag: first
        )
        raise UserError(first)
    options = [word for word in words[1:] if word not in ("--help", "-h")]
    args, _ = _parser(verb).read_known(options)
    return _open(words[0], args.logs)


def _child_parser(verb: str, recipe: RecipeFolder) -> Parser:
    """Returns the parser of a verb that trains a new run of a recipe out of another one."""
    parser = Parser(f"{verb} {recipe.name}/RUN", SUMMARIES[verb])
    parser.add_argument("--seeds", default=None, help="Train a run each with several seeds, as for train.")
    parser.flags.append("--seeds")
    return parser


def _open(run: str, logs: str) -> tuple[RunFolder, RecipeFolder]:
    from karpa_tf.training.run_folder import open_with_model

    folder = open_with_model(run, logs)
    return folder, recipe_of(folder)


def _parser(verb: str, words: dict[str, str] | None = None) -> Parser:
    return Parser(verb, SUMMARIES[verb], words)
