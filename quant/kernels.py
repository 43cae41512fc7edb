"""What the graphs may use on an execution provider: the one place that knows how the targets differ.

From onnxruntime's sources (August 2026): docs/OperatorKernels.md, contrib_ops/cuda/cuda_contrib_kernels.cc and the
kernels they list. The CUDA half has not run on a GPU.
"""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

NUMPY_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


@dataclass(frozen=True)
class Kernels:
    """The choices of one target.

    `precisions` it has, the first by default. `activations`: the type products are computed in; `weights`: the type
    float weights, biases and scales of blocks are stored in. Both float32 or bfloat16.

    per_token        MatMulIntegerToFloat multiplies uint8 by int8
    accuracy_level   of MatMulNBits
    fused_bias       MatMulNBits adds a bias itself
    even_rows        MatMulNBits calculates a row left over from pairs in another order
    query_lengths    GroupQueryAttention has input 16: right-padded batches after a past
    masked_attention Attention takes grouped heads and a boolean mask: one query a row in the last layer
    multi_head       MultiHeadAttention is the attention of pictures, Attention otherwise
    scatter_add      ScatterND adds in the type of the activations
    biased_gelu      FastGelu adds the bias in front of it, with the bits of Add and Gelu
    pieces           Scan takes what follows the attention of pictures in pieces of rows
    """

    precisions: tuple[str, ...]
    activations: str
    weights: str
    per_token: bool
    accuracy_level: int
    fused_bias: bool
    even_rows: bool
    query_lengths: bool
    masked_attention: bool
    multi_head: bool
    scatter_add: bool
    biased_gelu: bool
    pieces: bool

    def in_float32(self) -> "Kernels":
        """The same operators and stored weights with float32 activations, which the CPU can run."""
        return replace(self, activations="float32")


CPU = Kernels(
    precisions=("fp32", "int8", "int8-portable", "int4", "int4-portable"),
    activations="float32",
    weights="float32",
    per_token=True,
    accuracy_level=4,  # int8 activations; without it 8-bit weights are dequantised at every call
    fused_bias=True,
    even_rows=True,
    query_lengths=True,
    masked_attention=True,
    multi_head=True,  # the flash path
    scatter_add=True,
    biased_gelu=True,
    pieces=True,  # quantised to the bit what all rows at once give; 6 % less time in it on two cores
)
CUDA = Kernels(
    # GroupQueryAttention has no float32 kernel there, and float16 overflows in the vision encoder's MLP.
    precisions=("bf16", "int8", "int4"),
    activations="bfloat16",
    weights="bfloat16",
    per_token=False,
    accuracy_level=0,  # not read there: activations stay in bfloat16
    fused_bias=False,  # only of later versions
    even_rows=False,
    query_lengths=False,  # not in 1.31, the newest onnxruntime-gpu
    masked_attention=False,  # not in every version
    multi_head=False,  # it wants cuDNN, whatever kernel it takes; Attention has flash attention without
    scatter_add=False,  # float32 and float16, no bfloat16
    biased_gelu=False,  # not compared there
    pieces=False,  # a loop that the host drives
)
KERNELS = {"cpu": CPU, "cuda": CUDA}
