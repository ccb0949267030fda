"""Records by the compiled reader: what parsers and `residues.clean` find in ordinary texts, several times as fast."""

from collections import Counter

import numpy as np

from protein_lm.alphabet import ResiduePolicy
from protein_lm.files.text import Text
from protein_lm.io.records import Annotations, Columns
from protein_lm.io.residues import CODES, FIRST_AMBIGUOUS, J, X
from protein_lm.native.numpy_reader import CompiledFormat
from protein_lm.native.reader import address, reader
from protein_lm.native.structures import ReadCall

_ANNOTATIONS = "taxon_ids", "cluster_sizes", "protein_existence", "flags"
_LEAST_LINES = 2
"""Lines of a record with residues, at least."""


def read(text: Text, form: CompiledFormat, num_lines: int, policy: ResiduePolicy) -> Columns | None:
    """Read the records of a text of so many lines, without their memberships in families.

    Returns:
        The records as the format's parser reads them. None leaves the text to the parser: the reader is not built, or the
        text is not ordinary. Such a text has no record, a record at fault, lower case, gaps, stops or bytes beyond ASCII.
    """
    if not reader().is_compiled:
        return None
    head, body = np.frombuffer(text.head, dtype=np.uint8), np.frombuffer(text.body, dtype=np.uint8)
    size, capacity = head.size + body.size, num_lines // _LEAST_LINES
    arrays = {
        "tokens": np.empty(size, dtype=np.uint8),
        "lengths": np.empty(capacity, dtype=np.int64),
        "has_ambiguous": np.empty(capacity, dtype=np.bool_),
        "ids": np.empty(size, dtype=np.uint8),
        "id_lengths": np.empty(capacity, dtype=np.int64),
        "id_hashes": np.empty(capacity, dtype=np.uint64),
        "fingerprints": np.empty((capacity, 2), dtype=np.uint64),
        "taxon_ids": np.empty(capacity, dtype=np.int32),
        "cluster_sizes": np.empty(capacity, dtype=np.int32),
        "protein_existence": np.empty(capacity, dtype=np.uint8),
        "flags": np.empty(capacity, dtype=np.uint8),
    }
    call = ReadCall(
        head=address(head),
        body=address(body),
        codes=address(CODES),
        head_size=head.size,
        body_size=body.size,
        capacity=capacity,
        first_ambiguous=FIRST_AMBIGUOUS,
        x=X,
        j=J,
        all_to_x=policy is ResiduePolicy.TO_X,
        **{name: address(array) for name, array in arrays.items()},
    )
    number = reader().read(form, call)
    if number <= 0:
        return None
    sizes = {"tokens": call.num_tokens, "ids": call.num_id_bytes}
    columns = {name: array[: sizes.get(name, number)] for name, array in arrays.items()}
    if policy is ResiduePolicy.ERROR and columns["has_ambiguous"].any():
        return None
    annotations = Annotations(*(columns.pop(name) for name in _ANNOTATIONS))
    changes = Counter(j_to_x=call.num_j)
    if policy is ResiduePolicy.TO_X:
        changes["bouz_to_x"] = call.num_bouz
    return Columns(**columns, annotations=annotations, changes=+changes)
