"""What the runtime has to know of an execution provider that a package was made for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """One provider.

    `minimum_version` of onnxruntime, in the `distribution` that has the provider; `arena`: where its buffers lie.
    `batch_tokens` go through the decoder in a call, `low_batch_tokens` in the low mode, and `batch_patches` of equal
    pictures through the vision encoder; `call_cost` is what a call of the decoder costs before its first token, in
    tokens: reading the weights once and starting every operator.
    `past_tokens`: rows that continue a past hold at most so many together; 0 where a call takes one such row alone.
    `rows_together`: tokens of a row are padded to a multiple of it.
    `spare_last`: the last layer's past wants room for the capacity, as those of the other layers have.
    """

    provider: str
    distribution: str
    minimum_version: tuple[int, int]
    arena: str
    batch_tokens: int
    low_batch_tokens: int
    batch_patches: int
    call_cost: int
    past_tokens: int
    rows_together: int
    spare_last: bool

    def padded(self, length: int) -> int:
        """The tokens that a row of `length` takes in the decoder."""
        return -(-length // self.rows_together) * self.rows_together

    def capacity(self, length: int) -> int:
        """Room for `length` tokens and the padding behind them."""
        return length + self.rows_together


TARGETS = {
    "cpu": Target(
        provider="CPUExecutionProvider",
        distribution="onnxruntime",
        minimum_version=(1, 32),  # GroupQueryAttention's query_seqlens
        arena="cpu:0",
        # Each of 1,024 tokens takes up to an eighth longer than of 512, each of 8,192 patches a tenth than of 2,048
        # (bench/RESULTS.md): less of what a call holds is still in a cache.
        batch_tokens=512,
        low_batch_tokens=512,
        batch_patches=2048,
        call_cost=32,
        past_tokens=2048,  # a past is copied for every row of a pack; at 2B a token of it takes 229 kB
        # MatMulNBits calculates a row that is left over from pairs by itself, and not to the same last digits.
        rows_together=2,
        spare_last=False,
    ),
    "cuda": Target(
        provider="CUDAExecutionProvider",
        distribution="onnxruntime-gpu",
        minimum_version=(1, 31),
        arena="gpu:0",
        batch_tokens=8192,  # a past goes to the device and back at every call: better no pieces
        low_batch_tokens=4096,
        batch_patches=8192,
        call_cost=1024,  # an estimate, not measured
        # Without query_seqlens GroupQueryAttention takes a past with one row only, and that unpadded.
        past_tokens=0,
        rows_together=1,
        spare_last=True,  # GroupQueryAttention there too
    ),
}
