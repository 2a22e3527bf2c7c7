"""What a SavedModel may not hold: ops that call Python or reach the server's files.

A graph is a program, and these ops would run with the server's rights on whatever a request brings. Two
uses are part of every SavedModel and allowed: the functions with which it saves and restores its own
variables, and the initialisers of tables that read a file of its own `assets/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import meta_graph_pb2

from karpa_tf.serving.refusal import Refusal


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_PYTHON_OPS = _names("EagerPyFunc PyFunc PyFuncStateless")
_SAVER_OPS = _names(
    "MergeV2Checkpoints Restore RestoreSlice RestoreV2 Save SaveSlices SaveV2 ShardedFilename ShardedFilespec"
)
_TABLE_OPS = _names("InitializeTableFromTextFile InitializeTableFromTextFileV2")
# What else in TensorFlow 2.21 takes a path or an address, or runs a graph that comes as data.
_FILE_OPS = _names("""
    ReadFile WriteFile MatchingFiles ImmutableConst FileSystemSetConfiguration
    WholeFileReader WholeFileReaderV2 TextLineReader TextLineReaderV2 TFRecordReader TFRecordReaderV2
    FixedLengthRecordReader FixedLengthRecordReaderV2 LMDBReader RecordInput
    TextLineDataset TFRecordDataset TFRecordDatasetV2 FixedLengthRecordDataset FixedLengthRecordDatasetV2
    SqlDataset LMDBDataset CSVDataset CSVDatasetV2 MatchingFilesDataset CacheDataset CacheDatasetV2
    SnapshotDataset SnapshotDatasetV2 SnapshotDatasetReader SnapshotNestedDatasetReader SnapshotChunkDataset
    ListSnapshotChunksDataset SaveDataset SaveDatasetV2 LoadDataset DatasetToTFRecord DatasetFromGraph
    DataServiceDataset DataServiceDatasetV2 DataServiceDatasetV3 DataServiceDatasetV4 RegisterDataset
    RegisterDatasetV2 DistributedSave ExperimentalCSVDataset ExperimentalLMDBDataset
    ExperimentalMatchingFilesDataset ExperimentalSqlDataset ExperimentalDatasetToTFRecord
    CreateSummaryFileWriter CreateSummaryDbWriter DebugIdentity DebugIdentityV2 DebugIdentityV3
    DebugNanCount DebugNumericSummary LoadAndRemapMatrix GenerateVocabRemapping
""")
FORBIDDEN_OPS = _PYTHON_OPS | _SAVER_OPS | _TABLE_OPS | _FILE_OPS


def check(graph: meta_graph_pb2.MetaGraphDef, folder: Path) -> None:
    """Refuses a graph that calls Python or reaches files other than its own.

    Args:
        graph: the SavedModel's graph.
        folder: the version's folder.

    Raises:
        Refusal: it holds such an op; the sentence names them.
    """
    program = _Program(graph)
    saver_only = program.reached_only_by_saver()
    assets = _asset_names(graph, folder)
    found = sorted(
        {
            node.op
            for place, node in program.nodes()
            if (node.op in FORBIDDEN_OPS or _prints_to_file(node))
            and not (node.op in _SAVER_OPS and (place or node.name) in saver_only)
            and not (node.op in _TABLE_OPS and program.comes_from_asset(place, node.input[1], assets))
        }
    )
    if found:
        raise Refusal(
            "FAILED_PRECONDITION",
            f"the graph holds {', '.join(found)}, which could call Python or reach this machine's files; "
            "serve it with --allow_unsafe_ops if you trust who made it",
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


def _prints_to_file(node: Any) -> bool:
    return node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:")


def _called(node: Any) -> list[str]:
    return [
        function.name
        for attribute in node.attr.values()
        for function in ([attribute.func] if attribute.func.name else attribute.list.func)
    ]


def _node_name(tensor: str) -> str:
    return tensor.lstrip("^").split(":")[0]
