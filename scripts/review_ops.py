"""Lists every op that TensorFlow and TensorFlow Text register, with a review each, for a person to read.

    python scripts/review_ops.py            what is not reviewed yet, with what the rules below would say
    python scripts/review_ops.py --write    adds that to karpa_tf/serving/ops.txt; read what it added

`karpa_tf/serving/ops.txt` is what the server goes by: an op is loaded if it stands there as `yes`. The rules
only make proposals, and an op that matches none is proposed as `no`: what nobody has looked at is not loaded.
"""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

LIST = Path(__file__).parents[1] / "karpa_tf" / "serving" / "ops.txt"

# Reason and expression; the first that matches the whole name counts.
REFUSED = [
    ("python", r"EagerPyFunc|PyFunc|PyFuncStateless"),
    (
        "files",
        r"ReadFile|WriteFile|MatchingFiles|ImmutableConst|FileSystemSetConfiguration|.*Reader(V2)?|Reader.*"
        r"|RecordInput|Save|SaveV2|SaveSlices|Restore|RestoreV2|RestoreSlice|MergeV2Checkpoints|Sharded.*"
        r"|LoadAndRemapMatrix|GenerateVocabRemapping|InitializeTableFromTextFile(V2)?|Skipgram|DistributedSave"
        r"|CalibrationStatisticsSaver|DumpTensor|StoreMinibatchStatisticsInFdo|DTensorRestoreV2",
    ),
    (
        "summaries are written",
        r"CreateSummary.*|CloseSummaryWriter|FlushSummaryWriter|SummaryWriter|ImportEvent|Write.*Summary"
        r"|.*StatsAggregator.*",
    ),
    ("debugger", r"Debug.*|Copy|CopyHost"),
    (
        "network, other devices",
        r"Rpc.*|DeleteRpc.*|_?(Xla)?(Host)?(Send|Recv)(V2)?|Collective.*|.*Nccl.*|RemoteCall|WorkerHeartbeat"
        r"|AllToAll|CrossReplicaSum|.*DataService.*|DTensor.*|CopyToMesh.*|Relayout.*|.*TPU.*|.*Tpu.*|Infeed.*"
        r"|Outfeed.*|Prelinearize.*|.*SparseCore.*|.*Dedup.*|GetMinibatch.*|GlobalIterId|ConvertTo.*Coo.*"
        r"|UpdateTaskId.*|.*GpuToHost|.*HostToGpu",
    ),
    ("code that is compiled", r"_?Xla.*|Mlir.*|Risc.*|.*XlaConcatND|.*XlaSplitND"),
    (
        "pipelines of data, which run threads and keep state",
        r".*Dataset.*|.*Iterator.*|.*MemoryCache|.*SeedGenerator|CompressElement|UncompressElement"
        r"|.*ThreadPoolHandle|DummyIterationCounter|WindowOp",
    ),
    (
        "state that requests or models share",
        r".*Queue.*|Barrier.*|Stack.*|Stage.*|Unstage|(Ordered)?Map(Clear|IncompleteSize|Peek|Size|Stage|Unstage)"
        r"|(Ordered)?MapUnstageNoKey|.*Accumulator.*|Mutex.*|ConsumeMutexLock|GetSession.*|DeleteSessionTensor"
        r"|Batch|Unbatch|UnbatchGrad|BatchFunction|CustomAggregator|.*ToTensorsMap|.*FromTensorsMap",
    ),
    ("memory that others have used", r"Empty|TemporaryVariable|DestroyTemporaryVariable"),
    ("ends or holds up the process", r"Abort|Sleep.*"),
    (
        "made for TensorFlow's own tests",
        r"A|B|Attr.*|Binary|ComplexStruct|ConstructionFails|CopyOp|DefaultAttrs|DevicePlacementOp|DtypeWithDefaultOp"
        r"|DummySeed.*|FiveFloatOutputs|Float(In|Out)put.*|Foo\d|FuncAttr|FuncListAttr|GetDeadline|GetOptions"
        r"|GraphDefVersion|InPolymorphicTwice|Int64Output|Int(Attr|Input|Output).*|IsResourceHandleRefCounting"
        r"|IsTensorFloat32Enabled|KernelLabel.*|List(In|Out)put|MakeWeakResourceHandle|MixedStruct|N(In|Ints|Poly).*"
        r"|Namespace>.*|None|Old|OpWith.*|OutT.*|Polymorphic.*|RefIn|RefIn(put).*|RefOut.*|RequiresOlder.*|Reserved.*"
        r"|ResourceCreateOp|ResourceInitializedOp|ResourceUsingOp|Restrict|Simple|SimpleStruct|StringListAttr"
        r"|StubResourceHandleOp|Test.*|Two(Float|Int|Refs).*|TypeList.*|Unary|CheckPinned|HostConst|SyncDevice",
    ),
    # Of TensorFlow's internal ops only those with which a frozen graph is optimized.
    ("internal", r"_(?!Fused).*"),
]
# Numbers, strings, images, tables and variables of the graph's own, control flow: what a model is made of.
ALLOWED = r"[A-Z].*|_Fused.*"


def registered() -> list[str]:
    """Returns the name of every registered op, also of those that `tf.raw_ops` does not list."""
    import tensorflow_text  # noqa: F401
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session

    ops = op_def_pb2.OpList()
    ops.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    return sorted(op.name for op in ops.op)


def propose(name: str, *, first: bool = False) -> str:
    """Returns what the rules say of an op; with `first`, what no rule refuses is proposed as `yes`."""
    for reason, expression in REFUSED:
        if re.fullmatch(expression, name):
            return f"no   {reason}"
    return "yes" if first and re.fullmatch(ALLOWED, name) else "no   nobody has looked at it yet"


def reviewed() -> dict[str, str]:
    """Returns the reviews of the list by op."""
    lines = LIST.read_text(encoding="utf-8").splitlines() if LIST.exists() else []
    return dict(line.split(None, 1) for line in lines if line and not line.startswith("#"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--first", action="store_true", help="Propose `yes` where no rule refuses.")
    arguments = parser.parse_args()
    known = reviewed()
    new = {name: propose(name, first=arguments.first) for name in registered() if name not in known}
    for name, review in new.items():
        print(f"{name:<60} {review}")
    if arguments.write and new:
        head = (
            "# Every op of TensorFlow 2.21 and TensorFlow Text, and whether a served graph may hold it.\n"
            "# scripts/review_ops.py adds what a newer TensorFlow brings; a person reads it.\n"
        )
        lines = [f"{name:<60} {review}".rstrip() for name, review in sorted((known | new).items())]
        LIST.write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
