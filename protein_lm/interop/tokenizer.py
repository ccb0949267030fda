"""The alphabet as a tokenizer of the library transformers."""

from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.normalizers import Replace, Sequence
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from protein_lm.alphabet import CLS, EOS, RESIDUES, TOKENS
from protein_lm.files.plain_files import read_json


class ProteinLMTokenizer(PreTrainedTokenizerFast):
    """<cls>, a token for each residue, <eos>: the ids of `EsmTokenizer`.

    As everywhere in this project, lower case is raised, J reads as X, and white space, gaps and a final `*` are left out.
    Unlike elsewhere, other characters become <unk>.
    """

    vocab_files_names = {"config_file": "config.json"}  # noqa: RUF012
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, config_file: str | None = None, **options: Any) -> None:
        if config_file is not None and "model_max_length" not in options:
            options["model_max_length"] = read_json(Path(config_file))["model"]["max_length"]
        super().__init__(tokenizer_object=_residue_tokenizer(), **(_SPECIAL_TOKENS | options))


_SPECIAL_TOKENS = {f"{role}_token": f"<{role}>" for role in ("cls", "pad", "eos", "unk", "mask")} | {
    "bos_token": "<cls>"
}


def _residue_tokenizer() -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raised = [Replace(letter.lower(), letter) for letter in RESIDUES]
    left_out = r"[ \t\v\f\r\n.-]"
    cleaned = Replace(Regex(rf"{left_out}|\*{left_out}*\z"), "")
    tokenizer.normalizer = Sequence([cleaned, Replace(Regex("[jJ]"), "X"), *raised])
    tokenizer.pre_tokenizer = Split(Regex("."), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<cls> $A <eos>",
        special_tokens=[("<cls>", CLS), ("<eos>", EOS)],
    )
    tokenizer.decoder = Fuse()
    return tokenizer
