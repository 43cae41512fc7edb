"""The four places of a Llama layer where scales fold away: v→o, up→down, norm→q,k,v and norm→gate,up."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from bench.llama import Llama, LlamaConfig
from quant.blockwise import Blockwise
from quant.fold import Fold, awq_scales, largest_by_column, rounding_error, shared_scales, smoothing_scales
from quant.statistics import InputStatistics
from quant.two_level import TwoLevel

SAMPLED_ROWS = 256  # of each matrix, for the search of AWQ's exponent

Statistics = Mapping[str, InputStatistics]
Share = Callable[[np.ndarray], np.ndarray]
# (statistics of the input, its consumers' weights [N, K], what makes scales realisable) → scales [K]
Choose = Callable[[InputStatistics, list[np.ndarray], Share], np.ndarray]


@dataclass(frozen=True)
class Place:
    """`producers` give x [K] to `consumers`; each producer row feeds `groups` heads of `head_dim` inputs."""

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    groups: int = 1
    head_dim: int = 1

    def rows(self, scales: np.ndarray) -> np.ndarray:
        """Scales [K] reduced to one for each producer row."""
        return shared_scales(scales, self._producer_of(len(scales)))

    def share(self, scales: np.ndarray) -> np.ndarray:
        """Scales [K], equal wherever one producer row feeds several inputs."""
        return np.asarray(self.rows(scales)[self._producer_of(len(scales))])

    def _producer_of(self, width: int) -> np.ndarray:
        """Query heads of one key head stand side by side: inputs [key head, group, channel]."""
        rows = np.arange(width // self.groups).reshape(-1, 1, self.head_dim)
        return np.repeat(rows, self.groups, axis=1).reshape(-1)


def places(config: LlamaConfig) -> Iterator[Place]:
    """Every place of the model; matrices come before the norms, whose consumers they change."""
    groups = config.num_attention_heads // config.num_key_value_heads
    for index in range(config.num_hidden_layers):
        name = f"model.layers.{index}.{{}}.weight".format
        q, k, v, o = (name(f"self_attn.{each}_proj") for each in "qkvo")
        gate, up, down = (name(f"mlp.{each}_proj") for each in ("gate", "up", "down"))
        yield Place((v,), (o,), groups, config.head_dim)
        yield Place((up,), (down,))
        yield Place((name("input_layernorm"),), (q, k, v))
        yield Place((name("post_attention_layernorm"),), (gate, up))


def fold(
    llama: Llama, statistics: Statistics, choose_for: Callable[[str], Choose]
) -> tuple[Llama, dict[str, InputStatistics]]:
    """The same function with scales moved into the weights, and the statistics that leaves.

    `choose_for`: how the scales of a place are chosen, by the name of its first consumer.
    """
    weights, left = dict(llama.weights), dict(statistics)
    for place in places(llama.config):
        seen = statistics[place.consumers[0]]
        choose = choose_for(place.consumers[0])
        scales = place.share(choose(seen, [weights[name] for name in place.consumers], place.share))
        for name in place.producers:
            producer = weights[name]
            rows = Fold(rows=1 / place.rows(scales)).apply(producer.reshape(len(producer), -1), 0)
            weights[name] = rows.reshape(producer.shape)
        for name in place.consumers:
            weights[name] = Fold(columns=scales).apply(weights[name], 0)
        left[place.consumers[0]] = seen.divided(scales)
    return Llama(llama.config, weights), left


def smoothed(seen: InputStatistics, weights: list[np.ndarray], share: Share) -> np.ndarray:
    """SmoothQuant's scales."""
    return smoothing_scales(seen, largest_by_column(weights))


def awq(scheme: Blockwise | TwoLevel) -> Choose:
    """AWQ's scales for `scheme`."""

    def choose(seen: InputStatistics, weights: list[np.ndarray], share: Share) -> np.ndarray:
        spread = [np.linspace(0, len(weight) - 1, min(SAMPLED_ROWS, len(weight)), dtype=int) for weight in weights]
        rows = np.concatenate([weight[each] for weight, each in zip(weights, spread, strict=True)])
        return awq_scales(seen, lambda scales: rounding_error(scheme, rows, seen.mean_square, share(scales)))

    return choose
