"""One source of defaults, and values that make no sense."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import pytest
import yaml

from karpa_tf.cli import _config, _train_parser
from karpa_tf.errors import UserError
from karpa_tf.recipe import all_recipes, find_recipe
from karpa_tf.recipes.bert_classifier import BertClassifierSettings
from karpa_tf.recipes.cifar10_cnn import Cifar10CnnSettings
from karpa_tf.settings import Bounds, convert


@pytest.mark.parametrize("name", all_recipes())
def test_defaults_are_the_same_everywhere(name: str, tmp_path) -> None:
    recipe = find_recipe(name)
    shipped = yaml.safe_load((recipe.path / "default.yaml").read_text())
    in_python = recipe.about.settings()
    assert {key: getattr(in_python, key) for key in shipped} == shipped
    mine = tmp_path / "mine.yaml"
    mine.write_text("seed: 7\n")
    assert dataclasses.replace(_config(recipe, str(mine), {}), seed=0) == in_python
    assert _config(recipe, "default", {}) == in_python
    parser = _train_parser(recipe)
    typed = [f"--{field.name}={getattr(in_python, field.name)}" for field in dataclasses.fields(in_python)]
    args = parser.read(typed)
    assert {field.name: getattr(args, field.name) for field in dataclasses.fields(in_python)} == (
        dataclasses.asdict(in_python)
    )
    helped = " ".join(parser.format_help().split())
    for field in dataclasses.fields(in_python):
        default = getattr(in_python, field.name)
        shown = str(default).lower() if isinstance(default, bool) else default
        refused = field.name in getattr(recipe.about.settings, "refuses", ())
        assert refused or shown == "" or f"{field.metadata['help']} (default: {shown})" in helped


@pytest.mark.parametrize("name", all_recipes())
def test_flags_go_over_a_file_which_goes_over_the_defaults(name: str, tmp_path) -> None:
    recipe = find_recipe(name)
    mine = tmp_path / "mine.yaml"
    mine.write_text("learning_rate: 0.25\nseed: 7\n")
    config = _config(recipe, str(mine), {"seed": 8})
    assert (config.learning_rate, config.seed) == (0.25, 8)
    for settings in recipe.shipped_settings():
        _config(recipe, settings, {})


def test_the_essays_settings_are_the_essays() -> None:
    config = _config(find_recipe("cifar10-cnn"), "essay", {})
    assert isinstance(config, Cifar10CnnSettings)
    assert (config.network, config.optimizer, config.lookahead, config.label_smoothing, config.keep) == (
        *("essay", "adamw", False),
        *(0.0, "best"),
    )


@pytest.mark.parametrize("name", all_recipes())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_not_a_number(name: str, value: float) -> None:
    settings = find_recipe(name).about.settings
    for field in dataclasses.fields(settings):
        if isinstance(field.default, float):
            with pytest.raises(UserError, match=rf"{field.name} must be a finite number. Received: -?\w+\.$"):
                settings(**{field.name: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("epochs", 2.5, "epochs must be a whole number. Received: 2.5"),
        ("epochs", True, "epochs must be a whole number. Received: True"),
        ("dropout", "0.1", "dropout must be a finite number. Received: '0.1'"),
        ("dropout", 10**400, "dropout must be a finite number. Received: 1000"),
        ("dropout", False, "dropout must be a finite number. Received: False"),
        ("deterministic", "no", "deterministic must be true or false. Received: 'no'"),
        ("deterministic", 1, "deterministic must be true or false. Received: 1"),
        (
            "method",
            "lorra",
            "method must be one of full, lora, head, fewshot, zeroshot, cloze. Received: 'lorra'; did you "
            'mean "lora"?',
        ),
        (
            "method",
            ["lora"],
            "method must be one of full, lora, head, fewshot, zeroshot, cloze. Received: ['lora']",
        ),
        ("data", 3, "data must be text. Received: 3"),
        ("data", " ", "data is a file, a folder, tfds:NAME or embedded. Received:"),
        ("dropout", -0.1, "dropout must be at least 0 and below 1. Received: -0.1"),
        ("layer_decay", 1.005, "layer_decay must be at least 0 and at most 1. Received: 1.005."),
        ("seed", 2**32, "seed must be at least 0 and below 4294967296. Received: 4294967296."),
    ],
)
def test_from_python_types_are_checked_as_well(field: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        BertClassifierSettings(**{field: value})  # type: ignore[arg-type]
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("hint", "text", "value"),
    [
        (int, "1_000", 1000),
        (float, "1e-3", 0.001),
        (float, "7", 7.0),
        (bool, "False", False),
        (bool, "yes", True),
        (bool | None, "null", None),
        (bool | None, "true", True),
        (str, "7", "7"),
        (Literal["a", "b"], "b", "b"),
        (Annotated[float, Bounds(above=0, most=1)], "1", 1.0),
    ],
)
def test_what_is_typed_becomes_what_it_stands_for(hint: Any, text: str, value: object) -> None:
    found = convert("x", hint, text, text=True)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("hint", "text", "said"),
    [
        (int, "1.0", "x must be a whole number. Received: 1.0."),
        (float, "-inf", "x must be a finite number. Received: -inf."),
        (float, "1e999", "x must be a finite number. Received: 1e999."),
        (bool, "2", "x must be true or false. Received: 2."),
        (Annotated[float, Bounds(above=0, most=1)], "0", "x must be above 0 and at most 1. Received: 0."),
        (Literal["", "int8"], "int", 'x must be one of int8. Received: int; did you mean "int8"?'),
    ],
)
def test_what_is_typed_and_stands_for_nothing(hint: Any, text: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        convert("x", hint, text, text=True)
    assert str(error.value) == said
