"""Noise as large as the rounding in a quantised package, to train an embedder whose order of pictures rounding leaves.

Uniform noise over one step of the codes has the mean and the variance of what rounding adds, and unlike rounding it has
a derivative: a step is as wide as the largest number that shares it asks for, and learns to be small.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from quant.fold import smoothing_scales
from quant.statistics import InputStatistics
from training.model import Qwen3VL

LARGEST = 127  # 8-bit code, on either side of zero
NEAREST = 20  # the concepts whose order counts, without the right one


@contextmanager
def noisy(model: Qwen3VL) -> Iterator[None]:
    """Within, products and token table are off by as much as the codes of an int8 package are."""
    products = [each for each in model.modules() if isinstance(each, nn.Linear)]
    table = model.model["language_model"].embed_tokens
    try:
        for each in products:
            each.forward = partial(_product, each)
        table.forward = lambda ids: F.embedding(ids, disturbed(table.weight))
        yield
    finally:
        for each in [*products, table]:
            each.__dict__.pop("forward", None)


def disturbed(rows: Tensor) -> Tensor:
    """[..., K] as 8-bit codes would be off, with one step a row, as wide as the largest number asks for."""
    step = rows.abs().amax(-1, keepdim=True) / LARGEST
    return rows + step * (torch.rand_like(rows) - 0.5)


def unsteadiness(exact: Tensor, moved: Tensor, anchors: Tensor, target: Tensor) -> Tensor:
    """How much noise moves the order of the concepts nearest to each of [B, D], from the same with noise [B, D].

    The logarithm of: variance of what noise adds to the NEAREST cosines with `anchors` [C, D], except that with
    `target` int64 [B], over the variance of these cosines. Over that of all cosines, or of none, it could be lowered by
    vectors that fall into clusters or draw together.
    """
    exact, moved, anchors = (F.normalize(each, dim=-1) for each in (exact, moved, anchors.detach()))
    cosines = exact.detach() @ anchors.T
    near = anchors[cosines.scatter(1, target[:, None], -2.0).topk(NEAREST, 1).indices]  # [B, NEAREST, D]
    kept, added = (torch.einsum("bd,bnd->bn", each, near) for each in (exact, moved - exact))
    return (added.var(1).mean() / kept.var(1).mean()).log()


def _product(module: nn.Linear, x: Tensor) -> Tensor:
    scales = smoothing(x.detach(), module.weight.detach())
    return F.linear(disturbed(x / scales) * scales, disturbed(module.weight * scales) / scales, module.bias)


def smoothing(x: Tensor, weight: Tensor) -> Tensor:
    """What an export would fold between x [..., K] and a weight [N, K], [K]."""
    rows = x.flatten(0, -2)
    statistics = InputStatistics(rows.square().mean(0).cpu().numpy(), rows.abs().amax(0).cpu().numpy())
    return torch.from_numpy(smoothing_scales(statistics, weight.abs().amax(0).cpu().numpy())).to(x.device)
