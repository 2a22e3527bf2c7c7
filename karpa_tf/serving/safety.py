"""What a SavedModel may hold: ops that compute, and nothing that reaches out.

A graph is a program, and runs with the server's rights on whatever a request brings. So an op is loaded
only if `ops.txt` says so: the list of every op that TensorFlow and TensorFlow Text register, each
reviewed (`scripts/review_ops.py`). Left out are Python, files, the network, other processes, state that
requests or models share, memory that others have used, and code that is compiled. Of some ops an
attribute decides. Two uses of files are part of every SavedModel and allowed: the functions with which it
saves and restores its own variables, and the initialisers of tables that read a file of its own
`assets/`.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import meta_graph_pb2

from karpa_tf.serving.refusal import Refusal

_OPS = Path(__file__).with_name("ops.txt")


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SAVER_OPS = _names(
    "MergeV2Checkpoints Restore RestoreSlice RestoreV2 Save SaveSlices SaveV2 ShardedFilename ShardedFilespec"
)
_TABLE_OPS = _names("InitializeTableFromTextFile InitializeTableFromTextFileV2")


def _inside(value: bytes) -> bool:
    """Messages that are linked in, or come in the attribute itself; anything else is the path of a file."""
    return value in (b"", b"local://") or value.startswith(b"bytes://")


# Attributes of allowed ops that can name a file, and what they may say.
REVIEWED_ATTRIBUTES: dict[tuple[str, str], Callable[[bytes], bool]] = {
    ("FixedUnigramCandidateSampler", "vocab_file"): lambda value: not value,
    ("DecodeProtoV2", "descriptor_source"): _inside,
    ("EncodeProto", "descriptor_source"): _inside,
    ("PrintV2", "output_stream"): lambda value: not value.startswith(b"file:"),
}


@functools.cache
def reviews() -> Mapping[str, str]:
    """Returns the review of every op: `yes`, or `no` and why."""
    lines = _OPS.read_text(encoding="utf-8").splitlines()
    return dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))


def check(graph: meta_graph_pb2.MetaGraphDef, folder: Path) -> None:
    """Refuses a graph with an op that could reach out of it, or that nobody has reviewed.

    Args:
        graph: the SavedModel's graph.
        folder: the version's folder.

    Raises:
        Refusal: it holds such an op; the sentence names them.
    """
    program = _Program(graph)
    saver_only = program.reached_only_by_saver()
    assets = _asset_names(graph, folder)
    found: dict[str, set[str]] = defaultdict(set)
    for place, node in program.nodes():
        reason = program.refuses(node)
        if (
            reason
            and not (node.op in _SAVER_OPS and (place or node.name) in saver_only)
            and not (node.op in _TABLE_OPS and program.comes_from_asset(place, node.input[1], assets))
        ):
            found[reason].add(node.op)
    if found:
        named = "; ".join(
            f"{', '.join(sorted(ops)[:10])} ({reason})" for reason, ops in sorted(found.items())
        )
        raise Refusal(
            "FAILED_PRECONDITION",
            f"the graph holds what could reach out of it: {named}; serve it with --allow_unsafe_ops if you "
            "trust who made it",
        )


def _asset_names(graph: meta_graph_pb2.MetaGraphDef, folder: Path) -> set[str]:
    """Main-graph tensors that hold the path of an asset, each a file below the version's folder."""
    names = set()
    root = folder.resolve()
    for asset in graph.asset_file_def:
        if not (root / "assets" / asset.filename).resolve().is_relative_to(root):
            raise Refusal("FAILED_PRECONDITION", "an asset's path leads out of the SavedModel")
        names.add(asset.tensor_info.name.split(":")[0])
    return names


class _Program:
    """The main graph, the functions it holds, and who calls whom. The main graph is the place ""."""

    def __init__(self, graph: meta_graph_pb2.MetaGraphDef) -> None:
        self._meta = graph
        self._main = {node.name: node for node in graph.graph_def.node}
        self._functions = {f.signature.name: f for f in graph.graph_def.library.function}
        self._bodies = {name: {node.name: node for node in f.node_def} for name, f in self._functions.items()}
        self._callers: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for place, node in self.nodes():
            for name in _called(node):
                self._callers[name].append((place, node))

    def nodes(self) -> Iterator[tuple[str, Any]]:
        """Every node with the place it stands in."""
        for node in self._main.values():
            yield "", node
        for name, body in self._bodies.items():
            for node in body.values():
                yield name, node

    def refuses(self, node: Any) -> str:
        """Returns why a node may not be there, "" if it may."""
        if node.op in self._functions:
            return ""  # a call, of which every node is looked at
        answer, _, reason = (
            reviews().get(node.op, "no an op that is not on this server's list").partition(" ")
        )
        if answer != "yes":
            return reason.strip()
        for (op, attribute), allowed in REVIEWED_ATTRIBUTES.items():
            if op == node.op and not allowed(node.attr[attribute].s):
                return f"{attribute} names a file"
        return ""

    def reached_only_by_saver(self) -> set[str]:
        """Functions and main-graph nodes that nothing but saving and restoring leads to."""
        saver = self._meta.saver_def
        ends = [saver.filename_tensor_name, saver.save_tensor_name, saver.restore_op_name]
        others = [
            info.name
            for signature in self._meta.signature_def.values()
            for info in (*signature.inputs.values(), *signature.outputs.values())
        ]
        # What a Python program could call.
        functions = set(self._meta.object_graph_def.concrete_functions)
        return self._reached(ends, set()) - self._reached(others, functions)

    def _reached(self, tensors: list[str], functions: set[str]) -> set[str]:
        reached: set[str] = set()
        nodes = [_node_name(tensor) for tensor in tensors if tensor]
        calls = list(functions)
        while nodes or calls:
            if nodes:
                name = nodes.pop()
                node = self._main.get(name)
                if name in reached or node is None:
                    continue
                reached.add(name)
                nodes += [_node_name(tensor) for tensor in node.input]
                calls += _called(node)
            else:
                name = calls.pop()
                if name not in reached:
                    reached.add(name)
                    calls += [call for node in self._bodies.get(name, {}).values() for call in _called(node)]
        return reached

    def comes_from_asset(self, place: str, tensor: str, assets: set[str], depth: int = 0) -> bool:
        """Whether a tensor can be nothing but the path of an asset, followed back through its callers."""
        if depth > 20:
            return False
        name = _node_name(tensor)
        node = (self._bodies[place] if place else self._main).get(name)
        if node is not None and node.op == "Identity":
            return self.comes_from_asset(place, node.input[0], assets, depth + 1)
        if not place:
            return name in assets
        arguments = [argument.name for argument in self._functions[place].signature.input_arg]
        if name not in arguments:
            return False
        index = arguments.index(name)
        bound = self._meta.object_graph_def.concrete_functions.get(place)
        if bound is not None:
            captured = list(bound.bound_inputs)
            position = index - (len(arguments) - len(captured))
            if position < 0 or not self._is_asset_object(captured[position]):
                return False
        # Where there are objects, Python runs their functions and never the main graph.
        objects = bool(self._meta.object_graph_def.nodes)
        callers = [(where, node) for where, node in self._callers[place] if where or not objects]
        return (bound is not None or bool(callers)) and all(
            caller.op in ("PartitionedCall", "StatefulPartitionedCall")
            and self.comes_from_asset(where, caller.input[index], assets, depth + 1)
            for where, caller in callers
        )

    def _is_asset_object(self, index: int) -> bool:
        nodes = self._meta.object_graph_def.nodes
        return 0 <= index < len(nodes) and nodes[index].WhichOneof("kind") == "asset"


def _called(node: Any) -> list[str]:
    # A node can name a function as its op as well.
    return [node.op] + [
        function.name
        for attribute in node.attr.values()
        for function in ([attribute.func] if attribute.func.name else attribute.list.func)
    ]


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]
