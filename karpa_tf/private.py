"""Every private part of Keras, legacy Keras and TF-Agents that karpa_tf uses, each behind a name of ours.

None of them is promised to stay: setup.cfg keeps these packages at the minor release that they were tested
with, and tests/test_private.py has a test of each. Elsewhere are only the methods of TF-Agents' replay buffer
and policy that `karpa_tf.rl.dqn` overrides, because their classes cannot be imported without legacy Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def inner_layers(layer: Any) -> list[Any]:
    """Returns the Keras layers inside of a layer or model, at every depth."""
    return list(layer._flatten_layers(include_self=False))


def statistics(model: Any) -> list[Any]:
    """Returns what a Keras model's layers count as they go, e.g. batch normalization's moving averages."""
    variables = [v for layer in (model, *inner_layers(model)) for v in layer._non_trainable_variables]
    return [variable for variable in variables if "float" in variable.dtype]


def kernel(layer: Any) -> Any:
    """Returns the variable of a Keras dense layer: its `kernel` has adapters added and is cast."""
    return layer._kernel


def has_mask(output: Any) -> bool:
    """Whether a tensor carries the mask of an Embedding or Masking layer."""
    return getattr(output, "_keras_mask", None) is not None


def has_compiled_metrics(model: Any) -> bool:
    """Whether a Keras model was compiled with metrics."""
    return model._compile_metrics is not None


def graph_of(model: Any) -> Any | None:
    """Returns the graph of layers that a Keras model is; None of one whose `call` is its own."""
    kinds = ("keras.src.models.functional", "keras.src.models.sequential")
    if getattr(type(model).call, "__module__", "") not in kinds:
        return None
    return getattr(model, "_functional", model)


def run_graph(graph: Any, inputs: Any, operation: Callable[[Any], Callable[..., Any]]) -> Any:
    """Returns what a graph of Keras layers gives, with something else in the place of each layer's call.

    Args:
        graph: of `graph_of`.
        inputs: tensors, as the graph takes them.
        operation: returns what is called instead of a layer.
    """
    return graph._run_through_graph(inputs, operation_fn=operation)


# --- Optimizers of Keras --------------------------------------------------------------------------


def strategy_of(optimizer: Any) -> Any:
    """Returns the `tf.distribute.Strategy` under which a Keras optimizer was made."""
    return optimizer._distribution_strategy


def take_gradients_as_sums(optimizer: Any) -> None:
    """Makes a Keras optimizer take gradients as they come, instead of summing them over the replicas."""
    optimizer._all_reduce_sum_gradients = lambda gradients_and_variables: gradients_and_variables


def index_of(optimizer: Any, variable: Any) -> int:
    """Returns the place of a variable among those that a Keras optimizer was built with."""
    return optimizer._get_variable_index(variable)


def trained_variables(optimizer: Any) -> list[Any]:
    """Returns the variables that a Keras optimizer was built with."""
    return optimizer._trainable_variables


def moments(optimizer: Any, index: int) -> list[Any]:
    """Returns the first and second moment that Keras' Adam keeps of the variable at a place."""
    return [optimizer._momentums[index].value, optimizer._velocities[index].value]


def decays(optimizer: Any, variable: Any) -> bool:
    """Whether a Keras optimizer's weight decay is for this variable."""
    return optimizer._use_weight_decay(variable)


class OptimizerHooks:
    """Stands before a Keras optimizer among the bases of one that decays and clips by itself."""

    global_clipnorm: float | None

    def clip_by_global_norm(self, gradients: Sequence[Any]) -> Sequence[Any]:
        """Returns the gradients (None: of a variable without one) clipped by `global_clipnorm`."""
        raise NotImplementedError

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        pass  # `update_step` does it, in one pass

    def _clip_gradients(self, gradients: Sequence[Any]) -> Sequence[Any]:
        if self.global_clipnorm and self.global_clipnorm > 0:
            return self.clip_by_global_norm(gradients)
        return super()._clip_gradients(gradients)  # type: ignore[misc]


# --- TF-Agents and legacy Keras -------------------------------------------------------------------


def create_optimizer_variables(optimizer: Any, variables: Sequence[Any]) -> None:
    """Makes the slots of a legacy Keras optimizer before its first step, so that they can be restored."""
    optimizer._create_all_weights(variables)


def target_update_counter(agent: Any) -> Any:
    """Returns the variable by which a TF-Agents DQN agent counts until it copies the target network."""
    return agent._update_target._counter
