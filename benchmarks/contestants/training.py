"""One training step (forward, loss, backward, AdamW): ours, and what all contestants of the case share.

bfloat16 is `torch.autocast("cpu", torch.bfloat16)` around forward and loss, with float32 weights. Dropout is 0, and
every contestant gets the same tokens, the same positions to predict and the same fused AdamW.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.contestants import models
from benchmarks.contestants.base import UNLIMITED, Contestant, Prepared
from benchmarks.spec import Spec
from protein_lm import alphabet

MASKED_FRACTION = 0.15

Logits = Callable[[Tensor, Tensor], Tensor]
"""tokens (B, L), selected (B, L) -> logits (number of True, V)."""
BuildModel = Callable[[Spec], tuple[nn.Module, Logits]]


def batch(spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
    """Random residues: tokens (B, L), selected (B, L) True where the loss is, targets (number of True,).

    Masked: 15 % of the positions show <mask> and are predicted. Causal: each position but the last predicts the next.
    """
    generator = torch.Generator().manual_seed(0)
    shape = spec.batch, spec.length
    first = alphabet.FIRST_RESIDUE
    tokens = torch.randint(first, first + alphabet.NUM_STANDARD, shape, generator=generator)
    if spec.direction == "causal":
        selected = torch.ones(shape, dtype=torch.bool)
        selected[:, -1] = False
        return tokens, selected, tokens[:, 1:].reshape(-1)
    selected = torch.rand(shape, generator=generator) < MASKED_FRACTION
    return tokens.masked_fill(selected, alphabet.MASK), selected, tokens[selected]


def training_step(build: BuildModel) -> Callable[[Spec], Prepared]:
    """A contestant's `prepare` out of what builds its model."""

    def prepare(spec: Spec) -> Prepared:
        model, logits = build(spec)
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        tokens, selected, targets = batch(spec)

        def once() -> None:
            with precision(spec):
                loss = cross_entropy(logits(tokens, selected).float(), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            prepared.facts["loss_nats"] = loss.item()

        prepared = Prepared(once, units=spec.batch * spec.length)
        prepared.facts["num_parameters"] = sum(weight.numel() for weight in model.parameters())
        return prepared

    return prepare


def precision(spec: Spec) -> AbstractContextManager[object]:
    """Autocast where the spec says bfloat16."""
    return torch.autocast("cpu", torch.bfloat16) if spec.dtype == "bfloat16" else nullcontext()


def ours(attention: str) -> BuildModel:
    """`ProteinLM`, which forms logits of the selected positions only."""

    def build(spec: Spec) -> tuple[nn.Module, Logits]:
        model = models.ours(models.Size(spec.length), objective=spec.direction, attention=attention)
        return model, lambda tokens, selected: model(tokens, selected=selected)

    return build


CONTESTANTS = {
    "ours-relu": Contestant(training_step(ours("performer-relu")), {"causal": UNLIMITED, "masked": UNLIMITED}),
    "ours-softmax": Contestant(training_step(ours("performer-softmax")), {"causal": UNLIMITED, "masked": UNLIMITED}),
    "ours-exact": Contestant(training_step(ours("exact")), {"causal": 8192, "masked": 8192}),
}
