"""The command line: verbs and nothing else. What a verb does stands in the room that it calls.

TensorFlow takes seconds to import, so a verb imports what it needs when it runs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from karpa_tf import __version__
from karpa_tf.configs import (
    RECIPES,
    Recipe,
    RunConfig,
    find_recipe,
    read_settings,
    shipped_settings,
)
from karpa_tf.errors import UserError, did_you_mean
from karpa_tf.quiet import stderr_aside
from karpa_tf.serving.options import ServeOptions


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `karpa-tf`; those of the process by default.

    Returns:
        The exit status: 0, 1 (doctor found something), 2 (a sentence on standard error), or 130
        (Ctrl-C).
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except UserError as error:
        print(f"karpa-tf: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# --- The verbs ------------------------------------------------------------------------------------


def _list(args: Namespace) -> dict[str, Any]:
    rows = [
        {
            "recipe": recipe.name,
            "summary": recipe.summary,
            "default_data": recipe.default_data,
            "expected": recipe.expected(),
            "settings": shipped_settings(recipe.name),
        }
        for recipe in RECIPES.values()
    ]
    for row in rows:
        print(f"{row['recipe']}  {row['summary']}", file=_text(args))
        print(f"    data      {row['default_data']}", file=_text(args))
        print(f"    expected  {row['expected']}", file=_text(args))
        print(f"    settings  --config {', '.join(row['settings'])}", file=_text(args))
    return {"recipes": rows}


def _doctor(args: Namespace) -> dict[str, Any]:
    from karpa_tf import doctor

    with _quiet_import():
        report = doctor.check(args.logs)
    for check in report["checks"]:
        mark = "ok  " if check["ok"] else "FAIL"
        mend = f"\n      -> {check['mend']}" if check["mend"] else ""
        print(f"{mark}  {check['name']}{mend}", file=_text(args))
    return report


def _train(args: Namespace, recipe: Recipe, typed: dict[str, Any]) -> dict[str, Any]:
    from karpa_tf.training import run_folder

    if args.resume:
        folder = run_folder.open_run(args.resume, args.logs)
        config = _config_to_resume(recipe, folder, typed, args.config)
    else:
        config = _config(recipe, args.config or "default", typed)
        folder = None
    run_folder.resolve_init(config, args.logs)
    module = _load(recipe, legacy_keras=recipe.legacy_keras)
    from karpa_tf.training import runtime

    if not runtime.will_be_chief(config):
        # One worker makes the folder, writes and speaks; the others only read from it, to resume.
        module.train(config, folder or run_folder.no_run(args.logs, recipe.name), resume=bool(args.resume))
        return {"run": None, "metrics": {}}
    if folder is None:
        folder = run_folder.create_run(args.logs, recipe.name, sys.argv[1:])
    try:
        with run_folder.locked(folder.path):
            metrics = module.train(config, folder, resume=bool(args.resume))
    except KeyboardInterrupt:
        said = "Stopped before the first step; nothing is kept."
        go_on = f"karpa-tf train {recipe.name} --resume {folder.path}"
        if folder.has_checkpoint:
            said = f"Stopped; the best weights are kept. Go on with: {go_on}"
        elif folder.begun:
            said = f"Stopped before the first checkpoint; this begins again: {go_on}"
        print(said, file=sys.stderr)
        raise
    finally:
        if not args.resume:
            run_folder.remove_if_unused(folder)
    print(f"run: {folder.path}", file=_text(args))
    _print_table({recipe.name: metrics}, args)
    return {"run": str(folder.path), "metrics": _numbers(metrics)}


def _runs(args: Namespace) -> dict[str, Any]:
    from karpa_tf.training import run_folder

    if args.recipe:
        find_recipe(args.recipe)
    rows = run_folder.list_runs(args.logs, args.recipe)
    if not rows:
        print(f"No runs in {args.logs}.", file=_text(args))
    for line in run_folder.format_runs(rows):
        print(line, file=_text(args))
    return {"runs": rows}


def _evaluate(args: Namespace) -> dict[str, Any]:
    folder, recipe = _open(args)
    module = _load(recipe)
    options = _options(args, recipe, module.evaluate, {"attack": "none", "epsilon": "8/255"})
    result = module.evaluate(folder, data=args.data or None, **options)
    _print_table({"model": result["metrics"], **result["baselines"]}, args)
    for name, value in result.get("facts", {}).items():
        print(f"{name}: {value}", file=_text(args))
    for lines in result.get("tables", []):
        print("", *lines, sep="\n", file=_text(args))
    return {
        "recipe": recipe.name,
        "run": str(folder.path),
        "data": result["data"],
        "metrics": _numbers(result["metrics"]),
        "baselines": {name: _numbers(row) for name, row in result["baselines"].items()},
    }


def _predict(args: Namespace) -> dict[str, Any]:
    from karpa_tf import rows

    if args.output:
        rows.check_output(args.output)
    model = _model_file(Path(args.run))
    # What can be said of the rows is said before TensorFlow is imported: the inputs of a run are known.
    if model:
        given = rows.read(args.inputs, args.input)
        with _quiet_import():
            from karpa_tf.export import loader

            signature = loader.load_model(model)
        asked = given.match(rows.inputs_of_signature(signature.inputs))
    else:
        folder, recipe = _open(args)
        inputs = rows.inputs_of_run(folder.read_config())
        given = rows.read(args.inputs, args.input, rows.columns_of(inputs))
        asked = given.match(inputs, filled=True)
        if not folder.has_weights:
            raise UserError(
                f"{folder.path} has no weights yet; go on with `karpa-tf train {recipe.name} --resume "
                f"{folder.path}`."
            )
        signature = _load(recipe).signature(folder)
    for note in given.notes:
        print(note, file=sys.stderr)
    outputs = signature.predict(asked.inputs, broken="skip", read=rows.read_value)
    if args.output:
        for note in rows.write(args.output, asked.given, outputs, signature.names):
            print(note, file=sys.stderr)
        print(f"{args.output}: {len(outputs)} rows", file=_text(args))
    else:
        for line in rows.format(asked.inputs, outputs):
            print(line, file=_text(args))
    result: dict[str, Any] = {"predictions": outputs, "inputs": asked.given}
    failed = sum(rows.is_error(output) for output in outputs)
    if failed:
        print(f"{failed} of {len(outputs)} rows could not be read.", file=sys.stderr)
        result["ok"] = False
    return result


def _model_file(path: Path) -> Path | None:
    """Returns the SavedModel, .tflite or .onnx file that a path means; None: a run's."""
    if (path / "saved_model.pb").is_file():
        return path
    if path.suffix.lower() in (".tflite", ".onnx"):
        if not path.is_file():
            raise UserError(f"There is no file {path}.")
        return path
    for name in ("model.tflite", "model.onnx"):
        if (path / name).is_file():
            return path / name
    versions = [p for p in path.iterdir() if p.name.isdecimal()] if path.is_dir() else []
    if versions and not (path / "config.yaml").exists():
        newest = max(versions, key=lambda version: int(version.name))
        if _model_file(newest):
            raise UserError(f"{path} holds versions of a model; name one of them, as {newest}.")
    return None


def _explain(args: Namespace) -> dict[str, Any]:
    folder, recipe = _open(args)
    module = _load(recipe)
    if not hasattr(module, "explain"):
        raise UserError(f"explain does not go with {recipe.name}.")
    result = module.explain(folder, args.inputs)
    for line in result.pop("lines"):
        print(line, file=_text(args))
    return result


def _export(args: Namespace) -> dict[str, Any]:
    folder, recipe = _open(args)
    module = _load(recipe, legacy_keras=recipe.legacy_keras)
    options = _options(args, recipe, module.export, {"top_k": 0, "quantize": "", "format": "savedmodel"})
    result = module.export(folder, to=Path(args.to), force=args.force, **options)
    print(f"{args.format}: {result[args.format]}", file=_text(args))
    for line in result.pop("lines", []):
        print(line, file=_text(args))
    for name, signature in result["signatures"].items():
        print(f"  {name}: {signature['inputs']} -> {signature['outputs']}", file=_text(args))
    return result


def _serve(args: Namespace) -> None:
    """Serves until it is stopped; what is printed is printed when it is ready."""
    options = ServeOptions(**{field.name: args[field.name] for field in dataclasses.fields(ServeOptions)})
    with _quiet_import():
        from karpa_tf.serving import server

    def ready(description: dict[str, Any]) -> None:
        if args.json:
            print(json.dumps(description), flush=True)
            return
        for model, versions in description["models"].items():
            print(f"{model}: version {', '.join(map(str, versions)) or 'none'}")
        print(f"REST {description['rest']}  gRPC {description['grpc']}  stop with Ctrl-C", flush=True)

    server.run(options, args.models, ready)


def _options(
    args: Namespace, recipe: Recipe, function: Callable[..., Any], defaults: dict[str, Any]
) -> dict[str, Any]:
    """Returns the options that were given and that a recipe's function takes."""
    options = {name: args[name] for name, default in defaults.items() if args[name] != default}
    for name in options:
        if name not in inspect.signature(function).parameters:
            raise UserError(f"--{name} does not go with {recipe.name}.")
    return options


# --- The parser -----------------------------------------------------------------------------------

_VERBS: dict[str, tuple[str, Callable[..., dict[str, Any] | None]]] = {
    "list": ("Print the recipes, their default data, expected result and time.", _list),
    "doctor": ("Check versions, devices, imports and write access.", _doctor),
    "train": ("Train a recipe.", _train),
    "runs": ("Print a table of runs: the settings that differ and the figures.", _runs),
    "evaluate": ("Print a run's metrics on held-out data.", _evaluate),
    "predict": ("Predict with a run or a SavedModel.", _predict),
    "explain": ("Show which words or pixels speak for what a run says of an input.", _explain),
    "export": ("Write a SavedModel for TensorFlow Serving, or another format.", _export),
    "serve": ("Serve SavedModels over REST and gRPC, as TensorFlow Serving does.", _serve),
}


def _options_first(argv: list[str], leaves: dict[tuple[str, ...], ArgumentParser]) -> list[str]:
    """Puts options before the words: argparse takes no more words of a list behind an option."""
    leaf = leaves.get(tuple(argv[:1]))
    if leaf is None or argv[0] not in ("predict", "explain"):
        return argv
    options: list[str] = []
    words: list[str] = []
    rest = iter(argv[1:])
    for word in rest:
        if word == "--":
            words += ["--", *rest]
            break
        action = leaf._option_string_actions.get(word.split("=")[0])
        if action is None:
            words.append(word)
            continue
        options.append(word)
        if "=" not in word and action.nargs != 0:
            options += [value for value in (next(rest, None),) if value is not None]
    return [argv[0], *options, *words]


def _run(argv: list[str]) -> int:
    parser, leaves = _parsers()
    argv = _options_first(argv, leaves)
    if "--version" in argv[:1]:
        print(__version__)
        return 0
    if not argv:
        parser.print_help()
        return 0
    args = _parse(parser, leaves, argv, defaults=True)
    _choose_keras(False)
    verb = args.verb
    verb_args = args[verb]
    result: dict[str, Any] | None
    if verb == "train":
        recipe = find_recipe(verb_args.recipe)
        typed = _parse(parser, leaves, argv, defaults=False)["train"].get(recipe.name)
        typed = vars(typed) if typed else {}  # an empty namespace counts as false
        fields = {field.name for field in dataclasses.fields(recipe.config)}
        result = _train(
            verb_args[recipe.name],
            recipe,
            {name: value for name, value in dict(typed).items() if name in fields},
        )
        verb_args = verb_args[recipe.name]
    else:
        result = _VERBS[verb][1](verb_args)
    if result is None:
        return 0
    if verb_args.json:
        print(json.dumps(result, ensure_ascii=False))
    return 0 if result.get("ok", True) else 1


def _parsers() -> tuple[ArgumentParser, dict[tuple[str, ...], ArgumentParser]]:
    parser = _parser("karpa-tf", "From data to a served model. `karpa-tf VERB --help` says more.")
    parser.add_argument("--version", action="store_true", help="Print the version.")
    verbs = parser.add_subcommands(dest="verb", required=True, metavar="VERB")
    leaves: dict[tuple[str, ...], ArgumentParser] = {}
    for verb, (summary, _) in _VERBS.items():
        leaf = leaves[(verb,)] = _parser(f"karpa-tf {verb}", summary)
        verbs.add_subcommand(verb, leaf, help=summary)
        if verb == "train":
            recipes = leaf.add_subcommands(dest="recipe", required=True, metavar="RECIPE")
            for recipe in RECIPES.values():
                leaves[(verb, recipe.name)] = _train_parser(recipe)
                recipes.add_subcommand(recipe.name, leaves[(verb, recipe.name)], help=recipe.summary)
            continue
        if verb == "runs":
            leaf.add_argument("recipe", type=str, nargs="?", default="", help="Only this recipe's.")
        if verb in ("evaluate", "explain", "export"):
            leaf.add_argument("run", type=str, help="A run's folder, or RECIPE/latest.")
        if verb == "evaluate":
            leaf.add_argument(
                "--data", type=str, default="", help="Other data than the run's own test split."
            )
            leaf.add_argument(
                "--attack",
                type=Literal["none", "fgsm", "pgd"],
                default="none",
                help="Images: change them against the model as well, and say what it still gets right.",
            )
            leaf.add_argument(
                "--epsilon", type=str, default="8/255", help="Most that an attack changes a pixel."
            )
        if verb == "explain":
            leaf.add_argument(
                "inputs",
                type=str,
                nargs="*",
                default=[],
                help="Image files (none: some of the run's), or texts (none: standard input).",
            )
        if verb == "predict":
            leaf.add_argument(
                "run", type=str, help="A run, RECIPE/latest, a SavedModel folder, a .tflite or .onnx file."
            )
            leaf.add_argument("inputs", type=str, nargs="*", default=[], help="Inputs; else standard input.")
            leaf.add_argument(
                "--input",
                type=str,
                default="",
                help="Read inputs from a .txt (a row a line), .csv, .tsv, .jsonl, .xlsx or .parquet.",
            )
            leaf.add_argument(
                "--output",
                type=str,
                default="",
                help="Write the rows and their predictions to a .csv or .jsonl.",
            )
        if verb == "export":
            leaf.add_argument("--to", type=str, default="savedmodels", help="Where models live.")
            leaf.add_argument(
                "--top_k", type=int, default=0, help="mlm-gru: how many fillings of a mask; 0: five."
            )
            leaf.add_argument(
                "--quantize",
                type=Literal["", "none", "int8"],
                default="",
                help="int8: a quarter of the size. bert-*: none by default; litert: int8 by default.",
            )
            leaf.add_argument(
                "--format",
                type=Literal["savedmodel", "litert", "onnx"],
                default="savedmodel",
                help="Images: also LiteRT for phones and small devices, or ONNX.",
            )
            leaf.add_argument(
                "--force",
                action="store_true",
                help="Export even a model that has not learned its task.",
            )
        if verb == "serve":
            leaf.add_argument("models", type=str, nargs="?", default="savedmodels", help="Folder of models.")
            _add_fields(leaf, ServeOptions)
        _common(leaf)
    return parser, leaves


# A flag that may stand alone or take a value, as `--deterministic` and `--deterministic false`.
_FLAG: dict[str, Any] = {"type": bool, "nargs": "?", "const": True, "default": False}


def _train_parser(recipe: Recipe) -> ArgumentParser:
    parser = _parser(f"karpa-tf train {recipe.name}", f"{recipe.summary}. {recipe.expected()}")
    parser.add_argument(
        "--config",
        type=str,
        default="",
        help=f"Settings: {', '.join(shipped_settings(recipe.name))}, or a YAML file of yours.",
    )
    parser.add_argument(
        "--resume",
        type=str,
        default="",
        help=f"Go on with this run; only --{recipe.config.length} may grow.",
    )
    _add_fields(parser, recipe.config)
    _common(parser)
    return parser


def _add_fields(parser: ArgumentParser, fields_of: type[Any]) -> None:
    """Adds a flag for each field of a dataclass."""
    hints = get_type_hints(fields_of)
    for field in dataclasses.fields(fields_of):
        kind: dict[str, Any] = {"type": hints[field.name]}
        if hints[field.name] in (bool, bool | None):
            kind = _FLAG | {"type": hints[field.name]}
        kind["default"] = field.default
        parser.add_argument(f"--{field.name}", **kind, help=field.metadata["help"])


def _parser(prog: str, description: str) -> ArgumentParser:
    return ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)


def _common(parser: ArgumentParser) -> None:
    parser.add_argument("--logs", type=str, default="logs", help="Folder of the runs.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object on standard output.")


def _parse(
    parser: ArgumentParser,
    leaves: dict[tuple[str, ...], ArgumentParser],
    argv: list[str],
    *,
    defaults: bool,
) -> Namespace:
    try:
        return parser.parse_args(argv, defaults=defaults)
    except ArgumentError as error:
        raise UserError(_one_sentence(str(error), leaves, argv)) from None


def _one_sentence(message: str, leaves: dict[tuple[str, ...], ArgumentParser], argv: list[str]) -> str:
    """Turns the parser's report into one sentence that names the nearest right word."""
    choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
    if choice:
        known = re.findall(r"[\w-]+", choice[2])
        what = "recipe" if "recipe" in message.split(":")[0].lower() else "verb"
        return f'There is no {what} "{choice[1]}"{did_you_mean(choice[1], known)} Known: {", ".join(known)}.'
    unknown = re.search(r"[Uu]nrecognized arguments: (\S+)", message)
    if unknown:
        words = tuple(word for word in argv if not word.startswith("-"))
        leaf = leaves.get(words[:2]) or leaves[words[:1]]
        flags = [flag for a in leaf._actions for flag in a.option_strings]
        flag = unknown[1].split("=")[0]
        command = " ".join(["karpa-tf", *next(k for k, v in leaves.items() if v is leaf)])
        return f"{command} has no option {flag}{did_you_mean(flag, flags)}"
    wrong = re.search(r'Parser key "(.*?)":\s*(.*)', message, re.DOTALL)
    if wrong:
        reason = " ".join(wrong[2].split())
        reason = re.sub(r"an? <class '(\w+)'>", r"\1", reason)
        reason = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", reason)
        value = re.search(r"Got value: (.*)$", reason)
        options = re.search(r"one of (.*?)\. Got", reason)
        hint = "."
        if value and options:
            hint = did_you_mean(value[1], re.findall(r"'(.*?)'", options[1]))
        return f"--{wrong[1]}: {reason}{hint}"
    return " ".join(message.split())


# --- Shared by the verbs --------------------------------------------------------------------------


def _config(recipe: Recipe, name_or_path: str, typed: dict[str, Any]) -> RunConfig:
    """The defaults of the fields, under the settings file, under the typed flags."""
    values = read_settings(recipe, name_or_path)
    # The same parser checks the types of a file and of the flags.
    try:
        checked = _train_parser(recipe).parse_object(values, defaults=False)
    except ArgumentError as error:
        raise UserError(f"{name_or_path}: {_one_sentence(str(error), {}, [])}") from None
    return recipe.config(**{**{key: checked[key] for key in values}, **typed})


def _config_to_resume(recipe: Recipe, folder: Any, typed: dict[str, Any], config_option: str) -> RunConfig:
    if folder.recipe != recipe.name:
        raise UserError(f"--resume: {folder.path} is a run of {folder.recipe}, not of {recipe.name}.")
    if config_option:
        raise UserError("--config cannot go with --resume: the run's own config.yaml is used.")
    length = recipe.config.length
    for name in typed:
        if name != length:
            raise UserError(
                f"--{name} cannot go with --resume: everything comes from the run's config.yaml, "
                f"and only --{length} may grow."
            )
    config = folder.open_config(recipe.config)
    if length in typed:
        before = getattr(config, length)
        if typed[length] < before:
            raise UserError(
                f"--{length} may only grow with --resume: the run has {before}. Received: {typed[length]}."
            )
        setattr(config, length, typed[length])
    return config


def _open(args: Namespace) -> tuple[Any, Recipe]:
    from karpa_tf.training import run_folder

    folder = run_folder.open_run(args.run, args.logs)
    config = folder.read_config()
    if config.get("folds") and not config.get("fold"):
        raise UserError(
            f"{folder.path} is the mean of {config['folds']} folds, and holds no model; name a fold: "
            "its metrics.json lists them."
        )
    if folder.recipe not in RECIPES:
        raise UserError(
            f'{folder.path} lies in a folder "{folder.recipe}", which is no recipe: a run lies in '
            f"LOGS/RECIPE/NUMBER, and RECIPE is one of {', '.join(RECIPES)}."
        )
    return folder, find_recipe(folder.recipe)


def _load(recipe: Recipe, legacy_keras: bool = False) -> Any:
    _choose_keras(legacy_keras)
    with _quiet_import():
        return recipe.load()


def _choose_keras(legacy: bool) -> None:
    """Says which Keras `tf.keras` is to be: TensorFlow reads it once, when it is imported.

    TF-Agents alone needs the legacy one. Where that is asked for and not installed, as on Python 3.12,
    not even tensorflow_text can be imported.
    """
    if "tensorflow" not in sys.modules:
        if legacy and importlib.util.find_spec("tf_keras") is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = "1"
        else:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """Keeps what TensorFlow logs while it is imported off the screen, unless the import fails.

    Some of it comes before any log level is read, so standard error itself is set aside.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with stderr_aside():
        yield
        import tensorflow as tf

        tf.config.list_physical_devices()  # where there is no GPU, that is logged as well


def _text(args: Namespace) -> Any:
    """Where people read: standard output, unless that is kept for one JSON object."""
    return sys.stderr if args.get("json") else sys.stdout


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def _print_table(table: dict[str, dict[str, Any]], args: Namespace) -> None:
    names = list(dict.fromkeys(name for row in table.values() for name in _numbers(row)))
    width = max([len(row) for row in table] + [5])
    widths = [max(len(name), 8) for name in names]
    cells = [f"{name:>{size}}" for name, size in zip(names, widths, strict=True)]
    print(" ".join([" " * width, *cells]), file=_text(args))
    for row, values in table.items():
        cells = [
            f"{_figure(values[name]):>{size}}" if name in values else " " * size
            for name, size in zip(names, widths, strict=True)
        ]
        print(" ".join([f"{row:<{width}}", *cells]), file=_text(args))


def _figure(value: float) -> str:
    """Returns a figure as a table shows it: four digits, but counts whole."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
