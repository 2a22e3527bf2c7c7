"""Whether what a graph costs follows from the shapes of its inputs alone, and not from their values."""

from __future__ import annotations

from typing import Any


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Ops whose work and results grow with the shapes of their inputs only. Loops, branches, and whatever makes a
# tensor of a size that a value names (Range, Fill, Tile, ...) are left out.
_STEADY = _names(
    """
    Abs Acos Add AddN AddV2 All Any ArgMax ArgMin Asin AsString Atan AvgPool BatchMatMul BatchMatMulV2
    BatchMatMulV3 BiasAdd Cast Ceil ClipByValue ConcatV2 Const Conv2D Cos Cosh DepthwiseConv2dNative Div
    DivNoNan Elu EnsureShape Equal Erf Exp ExpandDims Expm1 Floor FloorDiv FloorMod FusedBatchNormV3 Gather
    GatherNd GatherV2 Greater GreaterEqual HashTableV2 Identity IdentityN InvertPermutation IsFinite IsInf
    IsNan L2Loss LeakyRelu Less LessEqual Log Log1p LogSoftmax LogicalAnd LogicalNot LogicalOr
    LookupTableFindV2 LookupTableSizeV2 MatMul Max MaxPool Maximum Mean Min Minimum Mul MulNoNan Neg NoOp
    NotEqual OnesLike Pack PartitionedCall Placeholder Pow Prod Rank ReadVariableOp RealDiv Reciprocal Relu
    Relu6 Reshape ResourceGather ResourceGatherNd ReverseV2 Round Rsqrt Select SelectV2 Selu Shape ShapeN
    Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign Split SplitV Sqrt Square SquaredDifference
    Squeeze StatefulPartitionedCall StopGradient StridedSlice StringJoin StringLength StringLower
    StringToHashBucketFast StringUpper Sub Sum Tan Tanh TopKV2 Transpose Unpack Xdivy Xlogy ZerosLike
    """
)


def is_steady(graph: Any) -> bool:
    """Looks at a graph and at every function it holds.

    Args:
        graph: a GraphDef.
    """
    functions = (node for function in graph.library.function for node in function.node_def)
    return all(node.op in _STEADY for nodes in (graph.node, functions) for node in nodes)
