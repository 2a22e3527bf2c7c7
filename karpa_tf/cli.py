"""The command line: verbs and nothing else. What a verb does stands in the package that it calls.

TensorFlow takes seconds to import, so a verb imports what it needs when it runs.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib.util
import os
import sys
import traceback
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import orjson

from karpa_tf import __version__, child_runs
from karpa_tf.errors import UserError, did_you_mean, write_whole
from karpa_tf.parser import Parser, help_of
from karpa_tf.quiet import stderr_aside
from karpa_tf.recipe import (
    Recipe,
    RecipeFolder,
    all_recipes,
    copy_recipe,
    find_recipe,
    recipe_name,
    recipe_of,
)
from karpa_tf.reports.tables import format_table
from karpa_tf.search.options import SearchOptions
from karpa_tf.serving.options import LoadOptions, RolloutOptions, ServeOptions
from karpa_tf.settings import RunSettings, types_of
from karpa_tf.watching.options import WatchOptions


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
    except ModuleNotFoundError as error:
        if not _is_imported_by_us(error):
            raise
        brings = "`pip install karpa-tf` brings it"
        print(
            f"karpa-tf: {argv[0]} needs {error.name}, which is not installed here; {brings}.", file=sys.stderr
        )
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): nobody reads any more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        print(
            f"karpa-tf: {argv[0]} takes a path where it got something longer than any: "
            f"{str(error.filename)[:60]}...",
            file=sys.stderr,
        )
        return 2


def _is_imported_by_us(error: BaseException) -> bool:
    """Whether a file of karpa_tf imports what is missing, and no other package or recipe of one's own."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("karpa_tf.")


# --- The verbs ------------------------------------------------------------------------------------


def _list(words: Sequence[str]) -> int:
    args = _parser("list").read(words)
    rows = [
        {
            "recipe": recipe.name,
            "summary": recipe.about.summary,
            "default_data": recipe.about.default_data,
            "expected": recipe.expected(),
            "settings": recipe.shipped_settings(),
        }
        for recipe in all_recipes().values()
    ]
    for row in rows:
        print(f"{row['recipe']}  {row['summary']}", file=_text(args))
        print(f"    data      {row['default_data']}", file=_text(args))
        print(f"    expected  {row['expected']}", file=_text(args))
        print(f"    settings  --config {', '.join(row['settings'])}", file=_text(args))
    return _done(args, {"recipes": rows})


def _doctor(words: Sequence[str]) -> int:
    from karpa_tf import doctor

    args = _parser("doctor").read(words)
    with _quiet_import():
        report = doctor.check(args.logs)
    for check in [*report["checks"], *report["optional"]]:
        mark = "ok  " if check["ok"] else "FAIL" if check in report["checks"] else "none"
        mend = f"\n      -> {check['mend']}" if check["mend"] else ""
        print(f"{mark}  {check['name']}{mend}", file=_text(args))
    return _done(args, report)


def _train(words: Sequence[str]) -> int:
    if not words or words[0].startswith("-"):
        about = f"{', '.join(all_recipes())}; or the folder of one of your own, as ./mine."
        first = "karpa-tf train: RECIPE comes before its options."
        _parser("train", {"recipe": about}).read(words, lambda flag: first)
        raise UserError(first)
    recipe = find_recipe(words[0])
    args = _train_parser(recipe).read(words[1:])
    typed = {name: value for name, value in vars(args).items() if name in types_of(recipe.about.settings)}
    from karpa_tf.training import run_folder

    if not args.resume:
        return _start(recipe, _config(recipe, args.config, typed), typed, args)
    folder = run_folder.open_run(args.resume, args.logs)
    return _start(recipe, _config_to_resume(recipe, folder, typed, args.config), typed, args, folder)


def _start(
    recipe: RecipeFolder, config: RunSettings, typed: Mapping[str, Any], args: Namespace, folder: Any = None
) -> int:
    """Trains a new run with settings of which some were typed, or goes on with the run of a folder."""
    from karpa_tf.training import run_folder

    code = str(recipe.path) if recipe.own else ""
    run_folder.resolve_init(config, args.logs)
    if args.seeds is not None:
        if "seed" in typed:
            raise UserError("--seed and --seeds do not go together: give all seeds to --seeds, as 0,3,7.")
        return _train_seeds(recipe, config, folder, args)
    loaded = _load(recipe, legacy_keras=recipe.about.legacy_keras)
    from karpa_tf.training import runtime

    if not runtime.will_be_chief(config):
        # One worker makes the folder, writes and speaks; the others only read from it, to resume.
        loaded.start(config, folder or run_folder.no_run(args.logs, recipe.name), resume=bool(folder))
        return _done(args, {"run": None, "metrics": {}})
    resume = folder is not None
    if folder is None:
        folder = run_folder.create_run(args.logs, recipe.name, sys.argv[1:], code)
    try:
        with run_folder.locked(folder.path):
            if code and code != folder.code:
                if folder.code and Path(folder.code).is_dir():
                    raise UserError(
                        f"{folder.path} is a run of the recipe in {folder.code}; give that folder, or train "
                        f"a new run. Received: {code}."
                    )
                # It was moved.
                folder.write_environment(config.seed, code=code)
            metrics = loaded.start(config, folder, resume=resume)
    except KeyboardInterrupt:
        said = "Stopped before the first step; nothing is kept."
        go_on = folder.resume_command
        if folder.has_checkpoint:
            kept = "; the best weights are kept" if folder.has_weights else ""
            said = f"Stopped{kept}. Go on with: {go_on}"
        elif folder.begun:
            said = f"Stopped before the first checkpoint; this begins again: {go_on}"
        print(said, file=sys.stderr)
        raise
    finally:
        if not resume:
            run_folder.remove_if_unused(folder)
    print(f"run: {folder.path}", file=_text(args))
    written = folder.read_metrics() or {}
    of_others = getattr(config, "ensemble", "") or getattr(config, "average", "")
    beside: dict[str, Any] = written.get("baselines", {}) if of_others else {}
    _print_table({recipe.name: metrics, **beside}, args)
    result = {"run": str(folder.path), "metrics": _numbers(metrics)}
    if beside:
        result["baselines"] = beside
    for fact, said in written.get("facts", {}).items() if beside else ():
        print(f"{fact}: {said}", file=_text(args))
    if costs := written.get("costs"):
        print("", *format_table(costs["table"]), f"({costs['how']})", sep="\n", file=_text(args))
        result["costs"] = costs
    return _done(args, result)


def _train_seeds(recipe: RecipeFolder, config: RunSettings, folder: Any, args: Namespace) -> int:
    from karpa_tf.training import seeds

    code = str(recipe.path) if recipe.own else ""
    runs = seeds.SeedRuns(config, args.logs, recipe.name, code, args.seeds, sys.argv[1:], folder)
    group = runs.train()
    path, line = seeds.draw(group, recipe.about), seeds.paper_line(group, recipe.about)
    print(*seeds.format_group(group), sep="\n", file=_text(args))
    print(*filter(None, [path and f"curves: {path}", line]), sep="\n", file=_text(args))
    return _done(args, {**group, "curves": path and str(path), "line": line})


def _start_child(child: Callable[[Sequence[str]], child_runs.Child]) -> Callable[[Sequence[str]], int]:
    """Returns the verb that makes a run of other runs."""
    return lambda words: _start(*child(words))


def _search(words: Sequence[str]) -> int:
    if not words or words[0].startswith("-"):
        _parser("search", {"recipe": ", ".join(all_recipes())}).read(words, lambda flag: "")
        raise UserError("karpa-tf search: RECIPE comes before its options.")
    recipe = find_recipe(words[0])
    args = _search_parser(recipe).read(words[1:])
    typed = {name: value for name, value in vars(args).items() if name in types_of(recipe.about.settings)}
    from karpa_tf.search import search

    kind = recipe.about.settings
    if args.resume:
        given = [*typed, *(name for name in types_of(SearchOptions) if name in args)]
        if given or args.config:
            raise UserError(
                f"--{[*given, 'config'][0]} cannot go with --resume: everything comes from the search's "
                f"{search.STATE}."
            )
        folder = Path(args.resume)
        state = search.read_state(folder)
        if state["recipe"] not in (recipe.name, str(recipe.path)):
            raise UserError(f"--resume: {folder} is a search of {state['recipe']}, not of {recipe.name}.")
        found = search.Search(folder, recipe, kind(**state["settings"]), SearchOptions(**state["options"]))
        found.read(state)
    else:
        config, options = _config(recipe, args.config, typed), _fields_of(SearchOptions, args)
        search.Search(Path(args.logs), recipe, config, options)  # what is wrong leaves no folder
        found = search.Search(search.new_folder(args.logs, recipe.name), recipe, config, options)
    found.write()
    try:
        found.run()
        best = found.write_best()
        winner = found.judge(found.train_winner(args.logs))
    except KeyboardInterrupt:
        print(f"Stopped. Go on with: {found.resume_command}", file=sys.stderr)
        raise
    for line in found.report(winner):
        print(line, file=_text(args))
    return _done(
        args,
        {
            "search": str(found.path),
            "best": str(best),
            "monitor": found.monitor,
            "trials": found.table(),
            "trained": found.trained,
            "in_full": found.count * found.lengths[-1],
            "importance": found.importance,
            "winner": winner,
        },
    )


def _new(words: Sequence[str]) -> int:
    parser = _parser("new", {"folder": "Of the recipe; its name is the recipe's."})
    parser.add_field("--like", str, "The recipe to begin with. (default: bert-classifier)")
    args = parser.read(words)
    like = find_recipe(getattr(args, "like", "bert-classifier"))
    name = copy_recipe(like, Path(args.folder))
    own = args.folder if os.sep in args.folder else f"./{args.folder}"
    print(f"{own}: a recipe like {like.name}. Edit its files, then:", file=_text(args))
    for line in (f"train {own}", f"evaluate {name}/latest", f"export {name}/latest"):
        print(f"  karpa-tf {line}", file=_text(args))
    return _done(args, {"recipe": name, "folder": args.folder, "like": like.name})


def _runs(words: Sequence[str]) -> int:
    from karpa_tf.training import listing, seeds

    if words and words[0] in _ON_RUNS:
        return _ON_RUNS[words[0]](words[1:])
    parser = _parser(
        "runs", {"recipe?": f"Only this recipe's; or one run; or {', '.join(_ON_RUNS)} and runs."}
    )
    parser.add_field("--sort", str, "A figure, the best first, or a setting.")
    parser.add_field("--where", str, 'Only runs for which this holds, as "seed=0 accuracy>0.9".')
    args = parser.read(words)
    rows = listing.list_runs(args.logs, args.recipe)
    there = bool(rows)
    if "where" in args:
        rows = listing.select(rows, args.where)
    if "sort" in args:
        rows = listing.sort(rows, args.sort)
    if not rows:
        of_all = f" for which {args.where} holds" if there else ""
        print(f"No runs in {args.logs}{of_all}.", file=_text(args))
    for line in listing.format_runs(rows):
        print(line, file=_text(args))
    groups = seeds.groups(rows)
    for group in groups:
        print(*seeds.format_group(group), sep="\n", file=_text(args))
    return _done(args, {"runs": rows, "groups": groups})


def _runs_rm(words: Sequence[str]) -> int:
    from karpa_tf.training import listing, run_folder

    parser = Parser("runs rm", "Delete runs, after a question.", {"runs*": "The runs, by their folders."})
    parser.add_field("--yes", bool, "Do not ask.")
    args = parser.read(words)
    if not args.runs:
        raise UserError("karpa-tf runs rm: name the runs that are to be deleted.")
    folders = list(dict.fromkeys(run_folder.open_run(run, args.logs) for run in args.runs))
    rows = listing.list_runs(args.logs)
    for folder in folders:
        if heirs := [run for run in listing.heirs(folder, rows) if run not in {str(f.path) for f in folders}]:
            print(f"{', '.join(heirs)} came of {folder.path} and may need it.", file=sys.stderr)
    if not getattr(args, "yes", False):
        if not sys.stdin.isatty():
            raise UserError(
                "karpa-tf runs rm asks before it deletes, and nobody can answer here; give --yes."
            )
        asked = f"Delete {', '.join(str(folder.path) for folder in folders)}? [y/N] "
        if input(asked).strip().lower() not in ("y", "yes"):
            print("Nothing was deleted.", file=_text(args))
            return _done(args, {"deleted": []})
    listing.remove(folders)
    print(f"deleted: {', '.join(str(folder.path) for folder in folders)}", file=_text(args))
    return _done(args, {"deleted": [str(folder.path) for folder in folders]})


def _runs_tag(words: Sequence[str], off: bool = False) -> int:
    from karpa_tf.training import listing, run_folder

    verb, what = ("untag", "Take words off a run.") if off else ("tag", "Put words on a run, for --where.")
    args = Parser(f"runs {verb}", what, {"run": "Its folder, or RECIPE/latest.", "tags*": "The words."}).read(
        words
    )
    if not args.tags:
        raise UserError(f"karpa-tf runs {verb}: give the words behind the run.")
    folder = run_folder.open_run(args.run, args.logs)
    listing.tag([folder], args.tags, off=off)
    print(f"{folder.path}: {', '.join(folder.tags) or 'no tags'}", file=_text(args))
    return _done(args, {"run": str(folder.path), "tags": folder.tags})


# What `runs` does with runs, beside showing them.
_ON_RUNS: dict[str, Callable[[Sequence[str]], int]] = {
    "rm": _runs_rm,
    "tag": _runs_tag,
    "untag": lambda words: _runs_tag(words, off=True),
}


def _evaluate(words: Sequence[str]) -> int:
    args, folder, recipe, options = _of_a_run("evaluate", words)
    result = _load(recipe).evaluate(folder, options)
    _print_table({"model": result.metrics, **result.baselines}, args)
    for name, value in result.facts.items():
        print(f"{name}: {value}", file=_text(args))
    for lines in result.tables:
        print("", *lines, sep="\n", file=_text(args))
    return _done(
        args,
        {
            "recipe": recipe.name,
            "run": str(folder.path),
            "data": result.data,
            "metrics": _numbers(result.metrics),
            "baselines": {name: _numbers(row) for name, row in result.baselines.items()},
            "facts": result.facts,
            **result.more,
        },
    )


def _compare(words: Sequence[str]) -> int:
    from karpa_tf import compare
    from karpa_tf.training import run_folder

    parser = _parser(
        "compare", {"runs*": "Runs, two at least; the first is what the others are compared with."}
    )
    parser.add_fields(compare.CompareOptions)
    args = parser.read(words)
    options = _fields_of(compare.CompareOptions, args)
    folders = list(dict.fromkeys(run_folder.open_with_model(run, args.logs) for run in args.runs))
    if len(folders) < 2:
        raise UserError(f"compare takes two runs at least. Received: {', '.join(args.runs) or 'none'}.")

    def evaluate(folder: Any) -> Any:
        if not folder.has_weights:
            raise UserError(f"{folder.path} has no weights yet; go on with `{folder.resume_command}`.")
        recipe = recipe_of(folder)
        return _load(recipe).evaluate(folder, recipe.about.evaluate(data=options.data))

    found = compare.compare_runs(folders, evaluate, options)
    for line in compare.format_comparison(found):
        print(line, file=_text(args))
    result = dataclasses.asdict(found)
    if options.html:
        write_whole(options.html, compare.comparison_page(found).encode())
        print(f"page: {options.html}", file=_text(args))
        result["html"] = options.html
    return _done(args, result)


def _report(words: Sequence[str]) -> int:
    from karpa_tf import report
    from karpa_tf.training import run_folder

    parser = _parser("report", {"run": "A run's folder, or RECIPE/latest."})
    parser.add_fields(report.ReportOptions)
    args = parser.read(words)
    options = _fields_of(report.ReportOptions, args)
    folder = run_folder.open_with_model(args.run, args.logs)
    folder.final_metrics()
    path = Path(options.html or folder.path / "report.html")
    page = report.report_page(_load(recipe_of(folder)), folder, options)
    write_whole(path, page.encode())
    print(f"report: {path}", file=_text(args))
    return _done(args, {"run": str(folder.path), "report": str(path), "bytes": len(page.encode())})


def _predict(words: Sequence[str]) -> int:
    from karpa_tf import rows

    model = _model_file(Path(_find_run("predict", words).run))
    if model:
        args = _verb_parser("predict").read(words, _takers("predict", f"{model}, which is no run"))
    else:
        args, folder, recipe, options = _of_a_run("predict", words)
    if args.output:
        rows.check_output(args.output, pictures=bool(model) or recipe.about.pictures)
    # What can be said of the rows is said before TensorFlow is imported: the inputs of a run are known.
    if model:
        given = rows.read(args.inputs, args.input)
        with _quiet_import():
            from karpa_tf.export import loader

            signature = loader.load_model(model)
        asked = given.match(rows.inputs_of_signature(signature.inputs))
    else:
        inputs = recipe.about.inputs(folder.read_config())
        made = None
        if recipe.about.rows:
            typed = [f"--{name}" for name in types_of(recipe.about.predict) if name in args]
            if not (args.inputs or args.input):
                made = recipe.about.rows(options, folder)
            elif typed:
                raise UserError(
                    f"{typed[0]} goes with no inputs: it says which rows are made. Leave one out."
                )
        given = rows.read(args.inputs, args.input, rows.columns_of(inputs), made)
        asked = given.match(inputs, filled=True)
        if not folder.has_weights:
            raise UserError(f"{folder.path} has no weights yet; go on with `{folder.resume_command}`.")
        signature = _load(recipe).signature(folder, options)
    for note in given.notes:
        print(note, file=sys.stderr)
    outputs = signature.predict(asked.inputs, broken="skip", read=rows.read_value)
    if args.output.lower().endswith(".png"):
        from karpa_tf.reports import pictures

        pictures.write_png(Path(args.output), pictures.sample_grid(rows.images_of(outputs, args.output)))
        print(f"{args.output}: {len(outputs)} images", file=_text(args))
    elif args.output:
        for note in rows.write(args.output, asked.given, outputs, signature.names):
            print(note, file=sys.stderr)
        print(f"{args.output}: {len(outputs)} rows", file=_text(args))
    else:
        for line in rows.format(asked.inputs, outputs, signature.shown):
            print(line, file=_text(args))
    result: dict[str, Any] = {"predictions": outputs, "inputs": asked.given}
    failed = sum(rows.is_error(output) for output in outputs)
    if failed:
        print(f"{failed} of {len(outputs)} rows could not be read.", file=sys.stderr)
        result["ok"] = False
    return _done(args, result)


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


def _explain(words: Sequence[str]) -> int:
    args, folder, recipe, options = _of_a_run("explain", words)
    result = _load(recipe).explain(folder, args.inputs, options)
    for line in result.lines:
        print(line, file=_text(args))
    return _done(args, {"explanations": result.explanations, **result.more})


def _play(words: Sequence[str]) -> int:
    args, folder, recipe, options = _of_a_run("play", words)
    played = _load(recipe).play(folder, options)
    # An episode of n steps has n + 1 pictures.
    left_out = sum(length + 1 for length in played.lengths) - played.frames
    cut = f", {left_out} later ones left out (--frames {options.frames})" if left_out > 0 else ""
    print(f"{played.path}: {played.frames} pictures{cut}", file=_text(args))
    each = zip(played.returns, played.lengths, played.figures, strict=True)
    for seed, (total, length, figures) in enumerate(each, options.seed):
        more = "".join(f", {name} {value:.4g}" for name, value in figures.items())
        print(f"  seed {seed}: return {total:.6g} in {length} steps{more}", file=_text(args))
    return _done(
        args,
        {
            "run": str(folder.path),
            "path": played.path,
            "returns": played.returns,
            "lengths": played.lengths,
            "figures": played.figures,
        },
    )


def _export(words: Sequence[str]) -> int:
    args, folder, recipe, options = _of_a_run("export", words)
    result = _load(recipe, legacy_keras=recipe.about.legacy_keras).export(folder, options)
    print(f"{result.format}: {result.path}", file=_text(args))
    for line in result.lines:
        print(line, file=_text(args))
    for name, signature in result.signatures.items():
        print(f"  {name}: {signature['inputs']} -> {signature['outputs']}", file=_text(args))
    return _done(args, {result.format: result.path, "signatures": result.signatures, **result.more})


def _tensorboard(words: Sequence[str]) -> int:
    """Serves until it is stopped; what is printed is printed when it is ready."""
    from karpa_tf.reports import tensorboard_server
    from karpa_tf.training import run_folder

    parser = _parser("tensorboard", {"runs?": "A recipe, a run or a folder of runs; else all."})
    parser.add_field("--host", str, "The address to listen on. (default: localhost)")
    parser.add_field("--port", int, "The port. (default: 6006, or the next one that is free)")
    args = parser.read(words)
    own = (Path(args.runs) / "recipe.py").is_file()
    folder = run_folder.find_events(recipe_name(args.runs) if own else args.runs, args.logs)

    def ready(url: str) -> None:
        line = orjson.dumps({"url": url, "folder": str(folder)}).decode()
        print(line if args.json else f"TensorBoard of {folder}: {url}  stop with Ctrl-C", flush=True)

    host, port = getattr(args, "host", "localhost"), getattr(args, "port", None)
    tensorboard_server.serve(folder, host, port, ready)
    return 0


def _serve(words: Sequence[str]) -> int:
    """Serves until it is stopped; what is printed is printed when it is ready."""
    parser = _parser("serve", {"models?": "Folder of models: savedmodels, if none is given."})
    parser.add_fields(ServeOptions)
    args = parser.read(words)
    options = _fields_of(ServeOptions, args)
    with _quiet_import():
        from karpa_tf.serving import server

    def ready(description: dict[str, Any]) -> None:
        if args.json:
            print(orjson.dumps(description).decode(), flush=True)
            return
        for model, versions in description["models"].items():
            print(f"{model}: version {', '.join(map(str, versions)) or 'none'}")
        print(f"REST {description['rest']}  gRPC {description['grpc']}  stop with Ctrl-C", flush=True)

    server.run(options, args.models or "savedmodels", ready)
    return 0


def _load_test(words: Sequence[str]) -> int:
    from karpa_tf import rows
    from karpa_tf.serving import load

    parser = _parser("load-test", {"url": "http://HOST:PORT/v1/models/NAME or grpc://HOST:PORT/NAME."})
    parser.add_field("--input", str, "Rows to send, a file as for predict; else short texts and zeros.")
    parser.add_fields(LoadOptions)
    args = parser.read(words)
    options = _fields_of(LoadOptions, args)
    target = load.open_target(args.url, options)
    given = rows.read([], args.input) if "input" in args else None
    if given or not isinstance(target, load.Rest):  # messages of gRPC are made by TensorFlow
        with _quiet_import():
            from tensorflow import TensorSpec, as_dtype
    inputs = load.inputs_of(target, options.signature)
    if given is None:
        asked = load.made_rows(inputs)
    else:
        types = {name: as_dtype(load.number_of(spec.dtype)) for name, spec in inputs.items()}
        specs = {name: TensorSpec(spec.shape, types[name], name) for name, spec in inputs.items()}
        read = given.match(rows.inputs_of_signature(specs), filled=True).inputs
        asked = [{name: rows.read_value(row[name], specs[name]) for name in specs} for row in read if row]
    report = load.run(target, load.make_messages(target, inputs, asked, options.rows), options)
    for line in load.format_report(report):
        print(line, file=_text(args))
    return _done(args, {"url": args.url, "inputs": args.input if given else "made", **report})


def _rollout(words: Sequence[str]) -> int:
    parser = _parser("rollout", {"model": "Folder of a model's versions, as savedmodels/NAME."})
    parser.add_fields(RolloutOptions)
    args = parser.read(words)
    options = _fields_of(RolloutOptions, args)
    with _quiet_import():
        from karpa_tf.serving import rollout

    done = rollout.roll_out(Path(args.model), options)
    served = ", ".join(f"{label}: version {number}" for label, number in done["labels"].items())
    print(f"{done['config']}: {done['model']}, {served}", file=_text(args))
    return _done(args, done)


def _watch(words: Sequence[str]) -> int:
    """Watches until the lines end; what there is to say is said at once."""
    parser = _parser(
        "watch",
        {
            "model": "A run, RECIPE/latest, a SavedModel folder, or http://HOST:PORT/v1/models/NAME.",
            "input?": "A file that grows, or a server's request log; else standard input.",
        },
    )
    parser.add_fields(WatchOptions)
    args = parser.read(words)
    options = _fields_of(WatchOptions, args)
    from karpa_tf.watching import watch

    model, folder, scalars = *_model_to_watch(args, options), None
    reference = watch.read_reference_of(options.reference, folder, options.signature)
    if options.tensorboard:
        with _quiet_import():
            from karpa_tf.reports.tensorboard import scalars_writer

        scalars = scalars_writer(options.tensorboard)

    def say(event: Mapping[str, Any]) -> None:
        lines = [orjson.dumps(event).decode()] if args.json else watch.format_event(event)
        print(*lines, sep="\n", flush=True)

    asked = options.signature != "serving_default"
    name = f"{args.model} {options.signature}" if asked else args.model
    watch.run(model, name, args.input, options, say, reference=reference, scalars=scalars)
    return 0


def _model_to_watch(args: Namespace, options: WatchOptions) -> tuple[Any, Path]:
    """Returns what labels texts, and its folder; only a model in this process imports TensorFlow."""
    from karpa_tf.watching import models

    if "://" in args.model:
        return models.open_remote(args.model, options), Path(args.model)
    from karpa_tf import rows

    if model := _model_file(Path(args.model)):
        with _quiet_import():
            from karpa_tf.export import loader

            signature, path = loader.load_model(model, options.signature), model
    else:
        from karpa_tf.training import run_folder

        folder = run_folder.open_with_model(args.model, args.logs)
        path = folder.path
        recipe = recipe_of(folder)
        if options.signature != "serving_default":
            raise UserError(
                f"--signature is of a SavedModel or a server, and {args.model} is a run: export it, and "
                "watch what was exported."
            )
        loaded = _load(recipe)
        signature = loaded.signature(folder, recipe.about.predict())
        if not options.reference:
            try:
                loaded.reference(folder, signature)
            except UserError as error:  # its data is gone, or is no longer the same
                print(f"{folder.path} has no validation rows any more: {error}", file=sys.stderr)
    texts = {name: taken.kind == "text" for name, taken in rows.inputs_of_signature(signature.inputs).items()}
    names = [] if isinstance(signature.names, Mapping) else list(signature.names)

    def predict(asked: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        return signature.predict(asked, broken="skip", read=rows.read_value)

    return models.Local(texts, names, predict), path


_VERBS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "list": ("Print the recipes, their default data, expected result and time.", _list),
    "doctor": ("Check versions, devices, imports and write access.", _doctor),
    "train": ("Train a recipe.", _train),
    "search": ("Find settings of a recipe that are better, on validation.", _search),
    "ensemble": (child_runs.SUMMARIES["ensemble"], _start_child(child_runs.ensemble)),
    "interpolate": (child_runs.SUMMARIES["interpolate"], _start_child(child_runs.interpolate)),
    "distill": (child_runs.SUMMARIES["distill"], _start_child(child_runs.distill)),
    "prune": (child_runs.SUMMARIES["prune"], _start_child(child_runs.prune)),
    "new": ("Make a recipe of your own: a copy of another one, to edit.", _new),
    "runs": ("Print a table of runs: the settings that differ and the figures.", _runs),
    "evaluate": ("Print a run's metrics on held-out data.", _evaluate),
    "compare": ("Compare runs on the same held-out rows, in pairs, with a test.", _compare),
    "report": ("Write all that there is to know of a run, as one file of HTML.", _report),
    "predict": ("Predict with a run or a SavedModel.", _predict),
    "explain": ("Show which words or pixels speak for what a run says of an input.", _explain),
    "play": ("Play episodes with a run's policy and write a film of them.", _play),
    "export": ("Write a SavedModel for TensorFlow Serving, or another format.", _export),
    "serve": ("Serve SavedModels over REST and gRPC, as TensorFlow Serving does.", _serve),
    "rollout": ("Write which versions of a model are served: a stable one, and a canary.", _rollout),
    "load-test": ("Send requests to a server, at a rate or from some clients, and time them.", _load_test),
    "watch": ("Watch the shares of labels in texts that come in, and raise alarms.", _watch),
    "tensorboard": ("Start TensorBoard on all runs, on those of a recipe, or on one.", _tensorboard),
}


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("--help", "-h"):
        print("usage: karpa-tf VERB ...\n\nFrom data to a served model. `karpa-tf VERB --help` says more.\n")
        for verb, (summary, _) in _VERBS.items():
            print(f"  {verb:<12}{summary}")
        print("  --version   Print the version.")
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    if argv[0] not in _VERBS:
        near = did_you_mean(argv[0], _VERBS)
        raise UserError(f'There is no verb "{argv[0]}"{near} Known: {", ".join(_VERBS)}.')
    _choose_keras(False)
    # Python compiles a package when it is first imported, where its installer did not.
    warnings.filterwarnings("ignore", category=SyntaxWarning, module=".*site-packages")
    return _VERBS[argv[0]][1](argv[1:])


def _done(args: Namespace, result: dict[str, Any]) -> int:
    if args.json:
        print(orjson.dumps(result).decode())  # NaN and infinity, which JSON has not, become null
    return 0 if result.get("ok", True) else 1


# --- What a verb takes ----------------------------------------------------------------------------

# The words of the verbs that begin with a run.
_WORDS: dict[str, dict[str, str]] = {
    "evaluate": {"run": "A run's folder, or RECIPE/latest."},
    "predict": {
        "run": "A run, RECIPE/latest, a SavedModel folder, a .tflite or .onnx file.",
        "inputs*": "Inputs; else standard input.",
    },
    "explain": {
        "run": "A run's folder, or RECIPE/latest.",
        "inputs*": "Image files (none: some of the run's), or texts (none: standard input).",
    },
    "play": {"run": "A run's folder, or RECIPE/latest."},
    "export": {"run": "A run's folder, or RECIPE/latest."},
}


def _parser(verb: str, words: dict[str, str] | None = None) -> Parser:
    return Parser(verb, _VERBS[verb][0], words)


def _train_parser(recipe: RecipeFolder) -> Parser:
    parser = Parser(f"train {recipe.name}", f"{recipe.about.summary}. {recipe.expected()}")
    parser.add_argument(
        "--config",
        default="",
        help=f"Settings: {', '.join([*recipe.shipped_settings(), 'a YAML file of yours'])}.",
    )
    length = recipe.about.settings.length
    parser.add_argument("--resume", default="", help=f"Go on with this run; only --{length} may grow.")
    parser.add_argument(
        "--seeds",
        default=None,
        help="Train a run each with several seeds, as 0:10 (0 to 9) or 0,3,7; with --resume: go on with a "
        "run of them and all the others.",
    )
    parser.flags += ["--config", "--resume", "--seeds"]
    parser.add_fields(recipe.about.settings)
    return parser


def _search_parser(recipe: RecipeFolder) -> Parser:
    parser = Parser(f"search {recipe.name}", f"Finds better settings of {recipe.name}, on validation alone.")
    parser.add_argument("--config", default="", help="Settings of all trials, as for train.")
    parser.add_argument("--resume", default="", help="Go on with the search in this folder.")
    parser.flags += ["--config", "--resume"]
    parser.add_fields(SearchOptions)
    parser.add_fields(recipe.about.settings)
    return parser


def _verb_parser(verb: str) -> Parser:
    """Returns the parser of a verb that begins with a run, without the options of recipes."""
    parser = _parser(verb, _WORDS[verb])
    if verb == "predict":
        file = ".txt (a row a line), .csv, .tsv, .jsonl, .xlsx or .parquet"
        parser.add_argument("--input", default="", metavar="FILE", help=f"Read inputs from a {file}.")
        parser.add_argument(
            "--output",
            default="",
            metavar="FILE",
            help="Write the rows and their predictions to a .csv or .jsonl, or images to a .png.",
        )
        parser.flags += ["--input", "--output"]
    return parser


def _options_by_recipe(verb: str) -> dict[str, dict[str, list[str]]]:
    """Returns the flags of a verb's options, of each what it is for, and of that which recipes take it so."""
    found: dict[str, dict[str, list[str]]] = {}
    for recipe in all_recipes().values():
        options = getattr(recipe.about, verb)
        for field in dataclasses.fields(options) if options else ():
            found.setdefault(f"--{field.name}", {}).setdefault(help_of(field), []).append(recipe.name)
    return found


def _find_run(verb: str, words: Sequence[str]) -> Namespace:
    """Reads the words with the options of all recipes, to find out which run is meant; or prints them all."""
    parser = _verb_parser(verb)
    every = [name for name, recipe in all_recipes().items() if getattr(recipe.about, verb)]
    hints = {
        f"--{name}": hint
        for recipe in every
        for name, hint in types_of(getattr(all_recipes()[recipe].about, verb)).items()
    }
    groups: dict[str, Any] = {}
    for flag, uses in _options_by_recipe(verb).items():
        recipes = [name for names in uses.values() for name in names]
        title = ", ".join(recipes) if recipes != every else "options of every recipe"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        helps = [f"{', '.join(names)}: {help}" if len(uses) > 1 else help for help, names in uses.items()]
        # What a value may be, the recipe of the run says.
        parser.add_field(flag, hints[flag], "; ".join(helps), groups[title], checked=False)
    # Of a run that is given, `--help` says what its recipe takes: that is read when the run is known.
    with_run = [word for word in words if word not in ("--help", "-h")]
    with suppress(UserError):
        args, _ = parser.read_known(with_run)
        if "run" in args:
            return args
    return parser.read(words)


def _of_a_run(verb: str, words: Sequence[str]) -> tuple[Namespace, Any, RecipeFolder, Any]:
    """Returns the words of a verb, the run that they begin with, its recipe, and the options given for it."""
    from karpa_tf.training import run_folder

    found = _find_run(verb, words)
    folder = run_folder.open_with_model(found.run, found.logs)
    recipe = recipe_of(folder)
    options = getattr(recipe.about, verb)
    if options is None:
        takers = ", ".join(name for name, other in all_recipes().items() if getattr(other.about, verb))
        raise UserError(f"{verb} does not go with {recipe.name}; it goes with {takers}.")
    parser = _verb_parser(verb)
    parser.add_fields(options)
    args = parser.read(words, _takers(verb, recipe.name))
    return args, folder, recipe, _fields_of(options, args)


def _takers(verb: str, name: str) -> Callable[[str], str]:
    """Returns what says of a flag which recipes take it, if there are any."""

    def say(flag: str) -> str:
        uses = _options_by_recipe(verb).get(flag, {})
        recipes = ", ".join(name for names in uses.values() for name in names)
        return f"{flag} does not go with {name}; it goes with {recipes}." if recipes else ""

    return say


def _fields_of(cls: type[Any], args: Namespace) -> Any:
    """Returns a dataclass of the options that were given."""
    return cls(**{name: getattr(args, name) for name in types_of(cls) if name in args})


# --- Shared by the verbs --------------------------------------------------------------------------


def _config(recipe: RecipeFolder, name_or_path: str, typed: dict[str, Any]) -> RunSettings:
    """The defaults of the fields, under the settings file, under the typed flags."""
    values = recipe.read_settings(name_or_path) if name_or_path else {}
    return recipe.about.settings(**{**values, **typed})


def _config_to_resume(
    recipe: RecipeFolder, folder: Any, typed: dict[str, Any], config_option: str
) -> RunSettings:
    if folder.recipe != recipe.name:
        raise UserError(f"--resume: {folder.path} is a run of {folder.recipe}, not of {recipe.name}.")
    if config_option:
        raise UserError("--config cannot go with --resume: the run's own config.yaml is used.")
    length = recipe.about.settings.length
    for name in typed:
        if name != length:
            raise UserError(
                f"--{name} cannot go with --resume: everything comes from the run's config.yaml, "
                f"and only --{length} may grow."
            )
    config = folder.open_config(recipe.about.settings)
    if length in typed:
        before = getattr(config, length)
        if typed[length] < before:
            raise UserError(
                f"--{length} may only grow with --resume: the run has {before}. Received: {typed[length]}."
            )
        setattr(config, length, typed[length])
    return config


def _load(recipe: RecipeFolder, legacy_keras: bool = False) -> Recipe[Any]:
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
    return sys.stderr if args.json else sys.stdout


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, (int, float))}


def _print_table(table: dict[str, dict[str, Any]], args: Namespace) -> None:
    print(*format_table(table), sep="\n", file=_text(args))
