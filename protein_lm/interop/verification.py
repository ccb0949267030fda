"""The converted model compared with fair-esm's own, which reads the same file with its own code."""

import warnings
from pathlib import Path

import torch
from esm.pretrained import load_model_and_alphabet_core

from protein_lm.alphabet import CLS, EOS, encode
from protein_lm.errors import ModelError
from protein_lm.interop.fair_esm import contact_file, unpickle
from protein_lm.model.language_model import ProteinLM

PROTEIN = "RPDFCLEPPYTGPCKARIIRYFYNAKAGLCQTFVYGGCRAKRNNFKSAEDCMRTCGGA"
"""Bovine pancreatic trypsin inhibitor, 58 residues."""
LARGEST_DIFFERENCE = 0.01
"""Logits of the two models may differ by this much, through rounding."""


@torch.inference_mode()
def verify(path: Path, model: ProteinLM) -> str:
    """Run fair-esm's model and ours on one protein; the largest difference of their logits, in a line for a person.

    Args:
        path: a checkpoint of fair-esm, with the file of its contact regression next to it or not.
        model: the model that `read_fair_esm` makes of it.

    Raises:
        ModelError: fair-esm does not read the file, or the logits differ by more than rounding explains.
    """
    contacts = contact_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing contact regression, which logits do not need
            regression = unpickle(contacts) if contacts.exists() else None
            original, alphabet = load_model_and_alphabet_core("esm2", unpickle(path), regression)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(
            f"{path}: fair-esm does not read it ({str(error).splitlines()[0]}); leave out --verify"
        ) from error
    _, _, tokens = alphabet.get_batch_converter()([("protein", PROTEIN)])
    expected = original.eval()(tokens)["logits"][0]
    ours = model(torch.tensor([[CLS, *encode(PROTEIN).tolist(), EOS]]))[0]
    difference = float((ours - expected).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise ModelError(
            f"{path}: the converted model's logits differ by {difference:.2g} from those of fair-esm's model; nothing was "
            "written; the file may be of another architecture"
        )
    scale = f"which reach {float(expected.abs().max()):.3g}, on {len(PROTEIN)} residues"
    return f"largest difference from fair-esm's logits, {scale}: {difference:.2g}"
