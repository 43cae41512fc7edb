"""Begin a wide and shallow embedder with what a narrow and deep one knows.

    python -m training.widen FOLDER

FOLDER/tiny-teacher is read, FOLDER/tiny becomes a checkpoint that is still to be trained. A state of the narrow one is
turned into the wider space, in parts of its own for each Matryoshka dimension, and every matrix is turned along: what
the layers that remain compute would stay as it was, if the others were there.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from training.checkpoint import EMBEDDER, new_model, read_vocabulary, read_weights, write_folder, write_weights
from training.concepts import read_concepts
from training.embedder import DIMENSIONS, corpus
from training.model import Layer, Qwen3VL
from training.tokenizer import ADDED, learn_vocabulary

KEPT = (0, 1, 2, 5)  # of the six layers: those that see DeepStack, and the last


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    teacher, checkpoint = options.folder / "tiny-teacher", options.folder / "tiny"
    vocabulary = learn_vocabulary(corpus(read_concepts(options.folder / "sources")), EMBEDDER.text.vocab_size)
    write_folder(checkpoint, vocabulary, "embedding", EMBEDDER)
    torch.manual_seed(0)
    narrow, wide = (new_model(each) for each in (teacher, checkpoint))
    read_weights(teacher, narrow)
    widen(narrow, wide, shared_ids(read_vocabulary(teacher)["vocab"], vocabulary["vocab"]))
    write_weights(checkpoint, wide)


def shared_ids(old: dict[str, int], new: dict[str, int]) -> dict[int, int]:
    """New id → old one, of the tokens of both vocabularies and of the special ones that follow each."""
    learnt = {index: old[token] for token, index in new.items() if token in old}
    return learnt | {len(new) + index: len(old) + index for index in range(len(ADDED))}


@torch.no_grad()
def widen(narrow: Qwen3VL, wide: Qwen3VL, ids: dict[int, int]) -> None:
    """Weights of `narrow` into `wide`, rows of the table by `ids`, new → old."""
    turn = nested_turn(narrow.table.shape[1], wide.table.shape[1])  # [wide, narrow]
    wide.table[list(ids)] = narrow.table[list(ids.values())] @ turn.T
    source, target = (each.model["language_model"].layers for each in (narrow, wide))
    for index, layer in zip(KEPT, target, strict=True):
        _widen_layer(source[index], layer, turn)
    _widen_vision(narrow.model["visual"], wide.model["visual"], turn)


def nested_turn(narrow: int, wide: int) -> Tensor:
    """Orthonormal columns [wide, narrow]; what is in the first numbers of a Matryoshka dimension stays in its first."""
    factor, turn, start = wide // narrow, torch.zeros(wide, narrow), 0
    for end in sorted(each // factor for each in DIMENSIONS):
        part = nn.init.orthogonal_(torch.empty(factor * (end - start), end - start))
        turn[factor * start : factor * end, start:end] = part
        start = end
    return turn


def _widen_layer(source: Layer, target: Layer, turn: Tensor) -> None:
    # A norm divides by the root of a mean over more numbers that add up to the same: it comes out larger by this.
    larger = (turn.shape[0] / turn.shape[1]) ** 0.5
    back = turn.T / larger
    old, new = source.self_attn, target.self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        getattr(new, name).weight.copy_(getattr(old, name).weight * source.input_layernorm.weight @ back)
    new.o_proj.weight.copy_(turn @ old.o_proj.weight)
    for name in ("q_norm", "k_norm"):
        getattr(new, name).load_state_dict(getattr(old, name).state_dict())
    gate, up, down = (each.weight for each in (source.mlp.gate_proj, source.mlp.up_proj, source.mlp.down_proj))
    strength = gate.norm(dim=1) * up.norm(dim=1) * down.norm(dim=0)
    kept = strength.topk(target.mlp.up_proj.out_features).indices
    norm = source.post_attention_layernorm.weight
    target.mlp.gate_proj.weight.copy_(gate[kept] * norm @ back)
    target.mlp.up_proj.weight.copy_(up[kept] * norm @ back)
    target.mlp.down_proj.weight.copy_(turn @ down[:, kept])


def _widen_vision(source: nn.Module, target: nn.Module, turn: Tensor) -> None:
    """Everything up to the last product of each merger as it is; blocks that are no more are left out."""
    old = source.state_dict()
    for name, value in target.state_dict().items():
        last = name.rsplit(".", 1)[0].endswith("linear_fc2") and "merger" in name
        value.copy_(turn @ old[name] if last else old[name])


if __name__ == "__main__":
    main()
