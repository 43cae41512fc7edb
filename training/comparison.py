"""The layer with which the small reranker begins to compare, written down instead of learnt.

The layers below it are taught by the embedder to leave two hidden states, of "<Document" and of the last token, as

    [what it is about, COMPARED numbers | AT_QUERY | AT_END | 0 ...]

where one of the two marks is set. This layer's attention finds the first state by its mark and puts what it is about
beside the last one's own, from BESIDE on; the MLP adds their scalar product to dimension ANSWER, since
silu(x) y + silu(-x) (-y) = x y; and the rows of "yes" and "no" in the token table read it there. Training goes on from
this; docs/training.md says what came of random weights.
"""

import torch
from torch import Tensor

from training.model import Layer, Qwen3VL

COMPARED = 62
AT_QUERY, AT_END = 62, 63
BESIDE = 64
ANSWER = 126
ANSWER_LENGTH = 2 * 3**0.5  # at a cosine of 1, in lengths of what is compared: twice the rest of the state
FOUND = 1.7  # weight of the norms of queries and keys: the marked token gets all attention
FURTHER, THRESHOLD = 1.5, 0.5  # of "yes" from the middle; the cosine at which it is as likely as "no"


@torch.no_grad()
def lay_out(model: Qwen3VL, length: float, yes: int, no: int) -> None:
    """Write the last layer, the final norm and two rows of the token table; `length` is that of what is compared."""
    language = model.model["language_model"]
    layer: Layer = language.layers[-1]
    for parameter in layer.parameters():
        if parameter.dim() > 1:
            parameter.mul_(0.05)  # what is not written below is left small, and free to learn
        else:
            parameter.fill_(1.0)
    _find_the_query(layer)
    _bring_it_beside(layer, length)
    _multiply(layer, length)
    language.norm.weight.fill_(1.0)
    for row, sign in ((yes, 1.0), (no, -1.0)):
        model.table[row] = 0.0
        model.table[row, ANSWER] = sign * FURTHER
        model.table[row, AT_END] = (
            -sign * FURTHER * ANSWER_LENGTH * THRESHOLD
        )  # the mark is as long as what is compared


def _find_the_query(layer: Layer) -> None:
    """The mark of the end asks for the mark of the query, in the pair of dimensions that rotation hardly turns."""
    attention = layer.self_attn
    queries, keys, size = attention.heads
    still = size // 2 - 1
    for head in range(queries):
        attention.q_proj.weight[head * size + still, AT_END] = 1.0
    for head in range(keys):
        rows = attention.k_proj.weight[head * size : head * size + still]
        rows.zero_()
        rows[:, BESIDE : BESIDE + still] = torch.eye(still)  # large where there is no mark
        attention.k_proj.weight[head * size + still, AT_QUERY] = 1.0
    attention.q_norm.weight.fill_(FOUND)
    attention.k_norm.weight.fill_(FOUND)


def _bring_it_beside(layer: Layer, length: float) -> None:
    """Values are what the query is about; of the heads that share them, each brings its share."""
    attention = layer.self_attn
    queries, keys, size = attention.heads
    shared = queries // keys
    scale = length / _share(attention.v_proj.weight, 2) / shared
    for index in range(COMPARED):
        key, place = divmod(index, size)
        attention.v_proj.weight[index] = 0.0
        attention.v_proj.weight[index, index] = 1.0
        for head in range(key * shared, (key + 1) * shared):
            attention.o_proj.weight[BESIDE + index, head * size + place] = scale


def _multiply(layer: Layer, length: float) -> None:
    """Two neurons for each product."""
    mlp = layer.mlp
    scale = ANSWER_LENGTH * length / _share(mlp.gate_proj.weight, 3) ** 2
    for index in range(COMPARED):
        for neuron, sign in ((2 * index, 1.0), (2 * index + 1, -1.0)):
            mlp.gate_proj.weight[neuron] = 0.0
            mlp.up_proj.weight[neuron] = 0.0
            mlp.gate_proj.weight[neuron, index] = sign
            mlp.up_proj.weight[neuron, BESIDE + index] = sign
            mlp.down_proj.weight[ANSWER, neuron] = scale


def _share(weight: Tensor, parts: int) -> float:
    """The length of each of so many equally long parts of a state after its norm."""
    return float((weight.shape[1] / parts) ** 0.5)
