"""Choices that recipes and the command line offer, one enum each; import nothing, so that help is quick."""

from enum import Enum


class LongPolicy(str, Enum):
    """What happens to a sequence that is longer than the model's window."""

    CROP = "crop"
    """Its first residues."""
    DROP = "drop"
    """Left out and counted."""
    ERROR = "error"
    """The command stops and names the first one."""


class ReadingLongPolicy(str, Enum):
    """What happens in scoring and embedding to a sequence that is longer than the model's window."""

    ERROR = "error"
    """The command stops and names the first one."""
    DROP = "drop"
    """Left out and counted."""
    EXTEND = "extend"
    """Read beyond the window, by causal models whose states and positions go on without end."""


class Estimate(str, Enum):
    """How a masked model's pseudo-log-likelihood is had."""

    EXACT = "exact"
    """Each residue hidden in turn: as many passes as there are residues."""
    ONE_PASS = "one-pass"
    """All residues predicted in one pass in which none is hidden: quick, and too high, since residues show themselves."""


class EmbeddingFormat(str, Enum):
    """Files of embeddings."""

    SAFETENSORS = "safetensors"
    """Shards with an index."""
    H5 = "h5"
    """HDF5 with a dataset for each sequence, as UniProt's own embeddings are."""


class StorageType(str, Enum):
    """Type of stored embeddings; they are computed in float32."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class TrainingLongPolicy(str, Enum):
    """What happens in training to a sequence that is longer than the model's window."""

    CROP = "crop"
    """A window at a seeded position, another one in each epoch."""
    WINDOW = "window"
    """All of it, as several windows that overlap."""
    DROP = "drop"
    """Left out and counted."""
    ERROR = "error"
    """The command stops and names the first one."""


class Windows(str, Enum):
    """How sequences become rows of training."""

    PACK = "pack"
    """Each sequence is a row of its own, between <cls> and <eos>; rows lie back to back without padding."""
    CONCATENATE = "concatenate"
    """All sequences one after the other, <eos> behind each, cut into rows of the window: the Performer paper's setting."""


class FigureFormat(str, Enum):
    """File format of figures."""

    PNG = "png"
    SVG = "svg"
    PDF = "pdf"


class Objective(str, Enum):
    """What the model learns to predict: the paper's U (unidirectional) and B (bidirectional)."""

    CAUSAL = "causal"
    """Each residue from those before it."""
    MASKED = "masked"
    """Masked residues from all others."""


class AttentionKind(str, Enum):
    """Attention by name; see `protein_lm.attention.kinds`."""

    EXACT = "exact"
    """Softmax attention, O(L²)."""
    PERFORMER_RELU = "performer-relu"
    PERFORMER_SOFTMAX = "performer-softmax"
    PERFORMER_OPTIMAL = "performer-optimal"
    PERFORMER_SADERF = "performer-saderf"
    PERFORMER_EXP = "performer-exp"
    PERFORMER_SIGMOID = "performer-sigmoid"
    PERFORMER_ABS = "performer-abs"
    PERFORMER_GELU = "performer-gelu"
    PERFORMER_COS = "performer-cos"
    PERFORMER_TANH = "performer-tanh"
    PERFORMER_IDENTITY = "performer-identity"
    ELU = "elu"
    COSFORMER = "cosformer"
    SOFTPLUS = "softplus"
    ORTHOGONAL_SOFTPLUS = "orthogonal-softplus"
    GLU = "glu"
    GLU_2 = "glu-2"
    GLU_3 = "glu-3"
    OGLU = "oglu"
    OGLU_2 = "oglu-2"
    AOGLU_3 = "aoglu-3"
    HEDGEHOG = "hedgehog"
    LOCAL = "local"
    LOCAL_GLOBAL = "local-global"
    STRIDED = "strided"
    BIGBIRD = "bigbird"
    LSH = "lsh"
    LINFORMER = "linformer"
    NYSTROM = "nystrom"


BIDIRECTIONAL_ONLY = frozenset({AttentionKind.LINFORMER, AttentionKind.NYSTROM})
"""Kinds without a causal form."""
KEPT_ORTHOGONAL = frozenset(
    {AttentionKind.ORTHOGONAL_SOFTPLUS, AttentionKind.OGLU, AttentionKind.OGLU_2, AttentionKind.AOGLU_3}
)
"""Kinds with weights that training.orthogonality keeps orthogonal."""


class PositionKind(str, Enum):
    """How a model knows where a token stands."""

    ROTARY = "rotary"
    """Queries and keys turned by their positions."""
    SINUSOIDAL = "sinusoidal"
    """A fixed vector of sines and cosines added to each embedding."""
    LEARNED = "learned"
    """A learned vector per position added to each embedding."""
    AXIAL = "axial"
    """As learned, put together of two small tables: a position's row and its column."""
    NONE = "none"
    """Not at all."""


class OutputHead(str, Enum):
    """What stands between the final hidden states and the logits."""

    TIED = "tied"
    """The embedding's own matrix, and a bias."""
    DENSE = "dense"
    """A dense layer, GELU and a norm before these, as in ESM-2."""
    NONE = "none"
    """Nothing: the model has hidden states and attention, but predicts no residues."""


class ProjectionKind(str, Enum):
    """Random projections of the Performer kinds by name; see `protein_lm.attention.feature_maps.projections`."""

    ORTHOGONAL = "orthogonal"
    IID = "iid"
    REGULARIZED = "regularized"
    HYPERBOLIC = "hyperbolic"
    SIMPLEX = "simplex"
    NONE = "none"
    """Features are a function of each channel of query and key; their number is the head width."""


class Precision(str, Enum):
    """Type of matrix products; weights, features and running states stay float32."""

    AUTO = "auto"
    """bfloat16 where the device multiplies it faster than float32, else float32."""
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class VariantStrategy(str, Enum):
    """How variants are scored, in nats, above 0 where the model prefers the variant; all but the last are for masked models.

    Source of the first four: Meier et al. 2021, "Language models enable zero-shot prediction of the effects of mutations on
    protein function", section 3, and `proteingym/baselines/esm/compute_fitness.py` of ProteinGym.
    """

    MASKED_MARGINALS = "masked-marginals"
    """Σ log p(mutant residue) - log p(wild type) over the mutated sites, all of them hidden at once (the formula of the
    paper)."""
    ADDITIVE_MARGINALS = "additive-marginals"
    """The same sum, with each site hidden alone in the wild type (what ProteinGym runs as `masked-marginals`)."""
    WT_MARGINALS = "wt-marginals"
    """The same, read off one pass over the wild type with nothing hidden."""
    PSEUDO_PPL = "pseudo-ppl"
    """Pseudo-log-likelihood of the variant less that of the wild type: each residue hidden in turn."""
    LOG_LIKELIHOOD = "log-likelihood"
    """Log-likelihood of the variant less that of the wild type; for causal models."""


class VariantLongPolicy(str, Enum):
    """What happens to variants of a protein, or with a length, over the model's window."""

    WINDOW = "window"
    """Each is scored in a window around what it changes."""
    DROP = "drop"
    """They are left out and named."""


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
    """What learning curves show."""

    PERPLEXITY = "perplexity"
    LOSS_NATS = "loss_nats"
    ACCURACY = "accuracy"


class CurveAxis(str, Enum):
    """What learning curves are drawn against."""

    STEP = "step"
    """Optimizer steps."""
    NUM_TOKENS = "num_tokens"
    """Tokens seen, special tokens included."""
    SECONDS = "seconds"
    """Time of training, validation and checkpoints included."""


class OnError(str, Enum):
    """What happens to a record that is at fault."""

    STOP = "stop"
    """It stops the command, which names it."""
    SKIP = "skip"
    """It is left out and counted."""


class FillingOrder(str, Enum):
    """Which of the residues to fill in are drawn first."""

    CONFIDENT = "confident"
    """Those that the model is surest of."""
    RANDOM = "random"
    """Any."""


class LoraLayers(str, Enum):
    """Which matrices of each block have adapters."""

    ALL = "all"
    """Those of attention and of the feed-forward layer."""
    ATTENTION = "attention"
    """The projections of attention alone."""


class Task(str, Enum):
    """What a head on top of a model predicts."""

    REGRESSION = "regression"
    """A number for each sequence."""
    CLASSIFICATION = "classification"
    """A class for each sequence."""
    RESIDUE_REGRESSION = "residue-regression"
    """A number for each residue."""
    RESIDUE_CLASSIFICATION = "residue-classification"
    """A class, named by one letter, for each residue."""

    @property
    def is_regression(self) -> bool:
        return self in (Task.REGRESSION, Task.RESIDUE_REGRESSION)

    @property
    def is_of_residues(self) -> bool:
        return self in (Task.RESIDUE_REGRESSION, Task.RESIDUE_CLASSIFICATION)


class Pooling(str, Enum):
    """What a head sees of a sequence that it predicts one thing of."""

    MEAN = "mean"
    """The mean over the hidden states of its residues."""
    END = "end"
    """The hidden state of <eos>, which in a causal model is the only one that has seen all residues."""
