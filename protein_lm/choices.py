"""Choices that recipes and the command line offer, one enum each. Nothing is imported, so that help is quick."""

from enum import Enum


class LongPolicy(str, Enum):
    """Treatment of sequences longer than the model's window."""

    CROP = "crop"
    """Keep the first residues."""
    DROP = "drop"
    """Leave them out and count them."""
    ERROR = "error"
    """Stop and name the first one."""


class ReadingLongPolicy(str, Enum):
    """Treatment in scoring and embedding of sequences longer than the model's window."""

    ERROR = "error"
    """Stop and name the first one."""
    DROP = "drop"
    """Leave them out and count them."""
    EXTEND = "extend"
    """Read beyond the window; for causal models whose states and positions have no end."""


class Estimate(str, Enum):
    """Way to compute a masked model's pseudo-log-likelihood."""

    EXACT = "exact"
    """Hide each residue in turn: as many passes as there are residues."""
    ONE_PASS = "one-pass"
    """Predict all residues in one pass in which none is hidden: quick, but too high, since each residue is visible."""


class EmbeddingFormat(str, Enum):
    """File format of embeddings."""

    SAFETENSORS = "safetensors"
    """Shards with an index."""
    H5 = "h5"
    """HDF5 with a dataset for each sequence, as in UniProt's own embeddings."""


class StorageType(str, Enum):
    """Type of stored embeddings; they are computed in float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class TrainingLongPolicy(str, Enum):
    """Treatment in training of sequences longer than the model's window."""

    CROP = "crop"
    """Take a window at a seeded position, another one in each epoch."""
    WINDOW = "window"
    """Take all of the sequence, as several windows that overlap."""
    DROP = "drop"
    """Leave them out and count them."""
    ERROR = "error"
    """Stop and name the first one."""


class Windows(str, Enum):
    """Way from sequences to rows of training."""

    PACK = "pack"
    """Each sequence is one row, between <cls> and <eos>; rows follow each other without padding."""
    CONCATENATE = "concatenate"
    """All sequences, with <eos> after each, are joined and cut into rows of the window, as in the Performer paper."""


class FigureFormat(str, Enum):
    """File format of figures."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


class Objective(str, Enum):
    """Task of a language model: the Performer paper's U (unidirectional) and B (bidirectional)."""

    CAUSAL = "causal"
    """Predict each residue from those before it."""
    MASKED = "masked"
    """Predict masked residues from all others."""


class PositionKind(str, Enum):
    """Way in which a model knows the position of a token."""

    ROTARY = "rotary"
    """Turn queries and keys by their positions."""
    SINUSOIDAL = "sinusoidal"
    """Add a fixed vector of sines and cosines to each embedding."""
    LEARNED = "learned"
    """Add a learned vector per position to each embedding."""
    AXIAL = "axial"
    """As learned, but made from two small tables: one for a position's row and one for its column."""
    NONE = "none"
    """No positions."""


class OutputHead(str, Enum):
    """Layers between the final hidden states and the logits."""

    TIED = "tied"
    """The matrix of the embedding, and a bias."""
    DENSE = "dense"
    """A dense layer, GELU and a norm, then as tied; the head of ESM-2."""
    NONE = "none"
    """No layers: the model has hidden states and attention, but predicts no residues."""


class Precision(str, Enum):
    """Type of matrix products; weights, features and running states stay float32."""

    AUTO = "auto"
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class VariantStrategy(str, Enum):
    """Score of a variant in nats, above 0 where the model prefers it to the wild type; all but the last for masked models.

    Source of the first four: Meier et al. 2021, "Language models enable zero-shot prediction of the effects of mutations on
    protein function", section 3, and `proteingym/baselines/esm/compute_fitness.py` of ProteinGym.
    """

    MASKED_MARGINALS = "masked-marginals"
    """Σ log p(mutant residue) - log p(wild type) over the mutated sites, all hidden at once: the formula of the paper."""
    ADDITIVE_MARGINALS = "additive-marginals"
    """The same sum, with each site hidden alone in the wild type; ProteinGym runs this as `masked-marginals`."""
    WT_MARGINALS = "wt-marginals"
    """The same sum from one pass over the wild type with nothing hidden."""
    PSEUDO_PPL = "pseudo-ppl"
    """Pseudo-log-likelihood of the variant minus that of the wild type, with each residue hidden in turn."""
    LOG_LIKELIHOOD = "log-likelihood"
    """Log-likelihood of the variant minus that of the wild type; for causal models."""


class VariantLongPolicy(str, Enum):
    """Treatment of variants longer than the model's window, or of a longer protein."""

    WINDOW = "window"
    """Score each in a window around its changes."""
    DROP = "drop"
    """Leave them out and name them."""


class OptimizerName(str, Enum):
    """The optimizer of the weight matrices inside the blocks; everything else is trained by AdamW."""

    ADAMW = "adamw"
    MUON = "muon"


class TrackerName(str, Enum):
    """Trackers of experiments that Accelerate knows; each needs its package."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"
    AIM = "aim"
    COMET_ML = "comet_ml"
    CLEARML = "clearml"
    DVCLIVE = "dvclive"
    TRACKIO = "trackio"
    SWANLAB = "swanlab"


class CurveMetric(str, Enum):
    """Quantity that learning curves show."""

    PERPLEXITY = "perplexity"
    LOSS_NATS = "loss_nats"
    ACCURACY = "accuracy"


class CurveAxis(str, Enum):
    """Horizontal axis of learning curves."""

    STEP = "step"
    """Optimizer steps."""
    NUM_TOKENS = "num_tokens"
    """Tokens of training so far, special tokens included."""
    SECONDS = "seconds"
    """Time of training so far, validation and checkpoints included."""


class OnError(str, Enum):
    """Treatment of a faulty record."""

    STOP = "stop"
    """Stop and name it."""
    SKIP = "skip"
    """Leave it out and count it."""


class FillingOrder(str, Enum):
    """Order in which missing residues are drawn."""

    CONFIDENT = "confident"
    """First those with the sharpest predictions."""
    RANDOM = "random"
    """At random."""


class LoraLayers(str, Enum):
    """Matrices of each block that have adapters."""

    ALL = "all"
    """Matrices of attention and of the feed-forward layer."""
    ATTENTION = "attention"
    """The projections of attention alone."""


class Task(str, Enum):
    """Task of a head on top of a model."""

    REGRESSION = "regression"
    """Predict a number for each sequence."""
    CLASSIFICATION = "classification"
    """Predict a class for each sequence."""
    RESIDUE_REGRESSION = "residue-regression"
    """Predict a number for each residue."""
    RESIDUE_CLASSIFICATION = "residue-classification"
    """Predict a class, named by one letter, for each residue."""

    @property
    def is_regression(self) -> bool:
        return self in (Task.REGRESSION, Task.RESIDUE_REGRESSION)

    @property
    def is_of_residues(self) -> bool:
        return self in (Task.RESIDUE_REGRESSION, Task.RESIDUE_CLASSIFICATION)


class Pooling(str, Enum):
    """Summary of a sequence for a head that predicts one label for it."""

    MEAN = "mean"
    """Mean over the hidden states of its residues."""
    END = "end"
    """Hidden state of <eos>; in a causal model, no other depends on all residues."""
