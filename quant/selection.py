"""Which matrix gets which scheme: one predicate in one place."""

from quant.schemes import AsStored, Float32, Scheme

PRECISIONS = ("fp32",)
TOKEN_TABLE = "model.language_model.embed_tokens.weight"


def scheme_for(name: str, precision: str) -> Scheme:
    """The scheme of the matrix called `name` (its checkpoint name) in a package of `precision`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is not one of {', '.join(PRECISIONS)}")
    return AsStored() if name == TOKEN_TABLE else Float32()
