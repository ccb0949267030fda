"""The table of attention kinds: a name in a recipe -> an operation.

A new kind is one file with its operation, one entry in `ATTENTION_KINDS`, and one line in the shared contract test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from protein_lm.attention.feature_maps.generalized import (
    FUNCTIONS,
    EluFeatures,
    ExponentialFeatures,
    GeneralizedFeatures,
)
from protein_lm.attention.feature_maps.optimal import OptimalFeatures, SaderfFeatures
from protein_lm.attention.feature_maps.performer import FeatureMap, ReLUFeatures, SoftmaxFeatures
from protein_lm.attention.feature_maps.trainable import FeedForwardFeatures, HedgehogFeatures
from protein_lm.attention.operations.interface import (
    AttentionOperation,
    CosformerOperation,
    ExactOperation,
    LinearOperation,
    LinformerOperation,
    LshOperation,
    NystromOperation,
    SparseOperation,
)
from protein_lm.attention.operations.low_rank import LengthProjections
from protein_lm.attention.operations.lsh import Hash
from protein_lm.attention.operations.patterns import Pattern


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What operations are built from; each kind takes what it needs."""

    num_heads: int
    head_width: int
    longest: int = 8192
    """Tokens of the longest sequence."""
    num_features: int = 256
    """M of random features."""
    projection: str = "orthogonal"
    """How these are drawn, see `projections.PROJECTIONS`."""
    window: int = 256
    """Tokens in sight of the sparse kinds; of LSH, within a bucket."""
    num_global_tokens: int = 1
    """First tokens of a sequence that see and are seen by all: local-global, bigbird."""
    stride: int = 4
    """Blocks (of 64 tokens) between those that a block sees: strided."""
    num_strides: int = 2
    """How many of these on each side: strided."""
    num_random_blocks: int = 3
    """Blocks drawn for each block: bigbird."""
    num_buckets: int = 32
    """Of lsh."""
    num_hash_rounds: int = 2
    """Of lsh."""
    num_landmarks: int = 64
    """Rank of linformer and nystrom."""
    layer: int = 0
    """Number of the layer: each draws random blocks of its own."""


Builder = Callable[..., AttentionOperation]


def _random_features(
    map_class: Callable[..., FeatureMap], options: AttentionOptions, *, causal: bool
) -> LinearOperation:
    return LinearOperation(map_class(options.head_width, options.num_features, options.projection), causal=causal)


def _feed_forward(
    options: AttentionOptions,
    *,
    causal: bool,
    num_layers: int = 1,
    gated: bool = False,
    orthogonal: bool = False,
    low_rank_gates: bool = False,
) -> LinearOperation:
    feature_map = FeedForwardFeatures(
        options.num_heads,
        options.head_width,
        num_layers=num_layers,
        gated=gated,
        orthogonal=orthogonal,
        gate_rank=max(1, options.head_width // 4) if low_rank_gates else None,
    )
    return LinearOperation(feature_map, causal=causal)


def _lsh(options: AttentionOptions, *, causal: bool) -> LshOperation:
    hashing = Hash(
        options.num_heads, options.head_width, num_buckets=options.num_buckets, num_rounds=options.num_hash_rounds
    )
    return LshOperation(hashing, options.window, causal=causal)


def _local(options: AttentionOptions, *, causal: bool) -> SparseOperation:
    return SparseOperation(Pattern(window=options.window), causal=causal)


def _local_global(options: AttentionOptions, *, causal: bool) -> SparseOperation:
    pattern = Pattern(window=options.window, num_global_tokens=options.num_global_tokens)
    return SparseOperation(pattern, causal=causal, own_global_projections=True)


def _strided(options: AttentionOptions, *, causal: bool) -> SparseOperation:
    pattern = Pattern(window=options.window, stride=options.stride, num_strides=options.num_strides)
    return SparseOperation(pattern, causal=causal)


def _bigbird(options: AttentionOptions, *, causal: bool) -> SparseOperation:
    pattern = Pattern(
        window=options.window,
        num_global_tokens=options.num_global_tokens,
        num_random_blocks=options.num_random_blocks,
        seed=options.layer,
    )
    return SparseOperation(pattern, causal=causal)


def _bidirectional_only(name: str, build: Callable[[AttentionOptions], AttentionOperation]) -> Builder:
    def builder(options: AttentionOptions, *, causal: bool) -> AttentionOperation:
        if causal:
            raise ValueError(f"{name} attention mixes the whole sequence and has no causal form; choose another kind")
        return build(options)

    return builder


ATTENTION_KINDS: dict[str, Builder] = {
    "exact": lambda options, *, causal: ExactOperation(causal=causal),
    "performer-relu": partial(_random_features, ReLUFeatures),
    "performer-softmax": partial(_random_features, SoftmaxFeatures),
    "performer-optimal": partial(_random_features, OptimalFeatures),
    "performer-saderf": partial(_random_features, SaderfFeatures),
    "performer-exp": partial(_random_features, ExponentialFeatures),
    **{
        f"performer-{name}": partial(_random_features, partial(GeneralizedFeatures, function=name))
        for name in FUNCTIONS
    },
    "elu": lambda options, *, causal: LinearOperation(EluFeatures(options.head_width), causal=causal),
    "cosformer": lambda options, *, causal: CosformerOperation(options.head_width, options.longest, causal=causal),
    "softplus": _feed_forward,
    "orthogonal-softplus": partial(_feed_forward, orthogonal=True),
    "glu": partial(_feed_forward, gated=True),
    "glu-2": partial(_feed_forward, gated=True, num_layers=2),
    "glu-3": partial(_feed_forward, gated=True, num_layers=3),
    "oglu": partial(_feed_forward, gated=True, orthogonal=True),
    "oglu-2": partial(_feed_forward, gated=True, orthogonal=True, num_layers=2),
    "aoglu-3": partial(_feed_forward, gated=True, orthogonal=True, num_layers=3, low_rank_gates=True),
    "hedgehog": lambda options, *, causal: LinearOperation(
        HedgehogFeatures(options.num_heads, options.head_width), causal=causal
    ),
    "local": _local,
    "local-global": _local_global,
    "strided": _strided,
    "bigbird": _bigbird,
    "lsh": _lsh,
    "linformer": _bidirectional_only(
        "linformer", lambda options: LinformerOperation(LengthProjections(options.num_landmarks, options.longest))
    ),
    "nystrom": _bidirectional_only("nystrom", lambda options: NystromOperation(options.num_landmarks)),
}
"""Name -> builder `(options, *, causal)`."""


def kinds_that_can_be_split() -> list[str]:
    """Kinds by which several processes may share a row, see `parallel`."""
    smallest = AttentionOptions(num_heads=1, head_width=2, longest=1, num_features=1)
    return [name for name, build in ATTENTION_KINDS.items() if build(smallest, causal=False).can_be_split]
