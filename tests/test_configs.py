"""One source of defaults, and values that make no sense."""

from __future__ import annotations

import dataclasses
import math

import pytest
import yaml

from karpa_tf.cli import _config, _parsers
from karpa_tf.configs import RECIPES, SETTINGS, BertClassifierConfig, Cifar10CnnConfig, shipped_settings
from karpa_tf.errors import UserError


@pytest.mark.parametrize("name", RECIPES)
def test_defaults_are_the_same_everywhere(name: str, tmp_path) -> None:
    recipe = RECIPES[name]
    shipped = yaml.safe_load((SETTINGS / name / "default.yaml").read_text())
    in_python = recipe.config()
    assert {key: getattr(in_python, key) for key in shipped} == shipped
    mine = tmp_path / "mine.yaml"
    mine.write_text("seed: 7\n")
    assert dataclasses.replace(_config(recipe, str(mine), {}), seed=0) == in_python
    assert _config(recipe, "default", {}) == in_python
    helped = _parsers()[1][("train", name)].get_defaults()
    assert {field.name: helped[field.name] for field in dataclasses.fields(in_python)} == dataclasses.asdict(
        in_python
    )


@pytest.mark.parametrize("name", RECIPES)
def test_flags_go_over_a_file_which_goes_over_the_defaults(name: str, tmp_path) -> None:
    recipe = RECIPES[name]
    mine = tmp_path / "mine.yaml"
    mine.write_text("learning_rate: 0.25\nseed: 7\n")
    config = _config(recipe, str(mine), {"seed": 8})
    assert (config.learning_rate, config.seed) == (0.25, 8)
    for settings in shipped_settings(name):
        _config(recipe, settings, {})


def test_the_essays_settings_are_the_essays() -> None:
    config = _config(RECIPES["cifar10-cnn"], "essay", {})
    assert isinstance(config, Cifar10CnnConfig)
    assert (config.network, config.optimizer, config.lookahead, config.label_smoothing, config.keep) == (
        *("essay", "adamw", False),
        *(0.0, "best"),
    )


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_not_a_number(name: str, value: float) -> None:
    config = RECIPES[name].config
    for field in dataclasses.fields(config):
        if isinstance(field.default, float):
            with pytest.raises(UserError, match=rf"{field.name} must be a finite number. Received: -?\w+\.$"):
                config(**{field.name: value})


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("epochs", 2.5, "epochs must be a whole number. Received: 2.5"),
        ("epochs", True, "epochs must be a whole number. Received: True"),
        ("dropout", "0.1", "dropout must be a finite number. Received: '0.1'"),
        ("deterministic", "no", "deterministic must be true or false. Received: 'no'"),
        ("method", "lorra", "method must be one of full, lora, head. Received: 'lorra'"),
        ("data", 3, "data must be text. Received: 3"),
        ("dropout", -0.1, "dropout must be at least 0 and below 1. Received: -0.1"),
    ],
)
def test_from_python_types_are_checked_as_well(field: str, value: object, said: str) -> None:
    with pytest.raises(UserError) as error:
        BertClassifierConfig(**{field: value})  # type: ignore[arg-type]
    assert str(error.value).startswith(said)
