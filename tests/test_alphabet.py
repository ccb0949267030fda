import esm
import numpy as np
import pytest

from protein_lm import alphabet


def test_tokens_and_ids_are_those_of_esm():
    theirs = esm.data.Alphabet.from_architecture("ESM-1b")
    assert list(alphabet.TOKENS) == theirs.all_toks
    ours = (alphabet.CLS, alphabet.PAD, alphabet.EOS, alphabet.UNK, alphabet.MASK)
    assert ours == (theirs.cls_idx, theirs.padding_idx, theirs.eos_idx, theirs.unk_idx, theirs.mask_idx)
    assert theirs.prepend_bos and theirs.append_eos and alphabet.NUM_SPECIAL_TOKENS == 2


@pytest.mark.parametrize("letter", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
def test_each_letter_in_both_cases(letter):
    expected = alphabet.TOKENS.index("X" if letter == "J" else letter)
    assert alphabet.encode(letter).tolist() == alphabet.encode(letter.lower()).tolist() == [expected]
    assert alphabet.decode(np.array([expected])) == ("X" if letter == "J" else letter)


@pytest.mark.parametrize("letter", ["*", "-", ".", "1", " ", "é", ">"])
def test_what_is_no_residue_is_refused_with_its_position(letter):
    with pytest.raises(ValueError, match="at position 3 is not a residue letter"):
        alphabet.encode("MK" + letter)
