"""Chains out of PDB and mmCIF files, with what such files have besides plain residues."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from protein_lm.data.structures import Chain, is_structure, read_chain
from protein_lm.errors import InputError
from tests.conftest import write_fasta
from tests.data.structure_files import SEQUENCE, Atom, cif_text, helices, pdb_lines, seqres_lines
from tests.inference.toys import records


def write(path: Path, *parts: list[str]) -> Path:
    path.write_text("\n".join(line for part in parts for line in part) + "\nEND\n")
    return path


def without(atoms: list[Atom], *numbers: int) -> list[Atom]:
    return [atom for atom in atoms if atom[3] not in numbers]


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "pair.pdb"


def test_points_are_beta_carbons_and_alpha_carbons_of_glycine(file) -> None:
    atoms = helices()
    chain = read_chain(str(write(file, list(pdb_lines(atoms)))))
    assert chain.sequence == SEQUENCE and chain.name == "pair.pdb:A" and chain.numbers[:2] == ("1", "2")
    wanted = [("CA" if letter == "G" else "CB", number) for number, letter in enumerate(SEQUENCE, 1)]
    expected = [atom[6] for pair in wanted for atom in atoms if (atom[1], atom[3]) == pair]
    np.testing.assert_allclose(chain.points, expected, atol=1e-3)


def test_missing_residues_are_found_by_the_declared_sequence_or_by_numbers(file, tmp_path) -> None:
    atoms = without(helices(), 1, 2, 10, 11, 12, 32)
    seen = [number not in (1, 2, 10, 11, 12, 32) for number in range(1, 33)]
    declared = read_chain(str(write(file, list(seqres_lines(SEQUENCE)), list(pdb_lines(atoms)))))
    shifted = [(*atom[:3], atom[3] + 500, *atom[4:]) for atom in atoms]
    aligned = read_chain(str(write(file, list(seqres_lines(SEQUENCE)), list(pdb_lines(shifted)))))
    cif = tmp_path / "pair.cif"
    cif.write_text(cif_text(atoms, SEQUENCE))
    for chain in (declared, aligned, read_chain(str(cif))):
        assert chain.sequence == SEQUENCE and chain.is_seen.tolist() == seen
    assert aligned.numbers[2] == "503"
    by_numbers = read_chain(str(write(file, list(pdb_lines(atoms)))))
    assert by_numbers.sequence == SEQUENCE[2:9] + "XXX" + SEQUENCE[12:31]
    assert by_numbers.is_seen.sum() == sum(seen)


def test_a_jump_of_numbers_over_an_unbroken_bond_is_no_gap(file) -> None:
    jumping = [(*atom[:3], atom[3] + (20 if atom[3] > 6 else 0), *atom[4:]) for atom in helices()]
    assert read_chain(str(write(file, list(pdb_lines(jumping))))).sequence == SEQUENCE


def test_insertion_codes_alternative_locations_models_and_selenomethionine(file) -> None:
    inserted = [(*atom[:3], atom[3] - (atom[3] > 7), "A" if atom[3] == 8 else "", *atom[5:]) for atom in helices()]
    chain = read_chain(str(write(file, list(seqres_lines(SEQUENCE)), list(pdb_lines(inserted)))))
    assert chain.sequence == SEQUENCE and chain.numbers[6:9] == ("7", "7A", "8")
    shift = np.array([0, 0, 0.5])
    twice = [
        part
        for atom in helices()
        for part in ([(*atom[:5], "A", atom[6]), (*atom[:5], "B", atom[6] + shift)] if atom[3] == 5 else [atom])
    ]
    alone, both = (read_chain(str(write(file, list(pdb_lines(atoms))))) for atoms in (helices(), twice))
    np.testing.assert_allclose(both.points[4] - alone.points[4], shift, atol=2e-3), "B is occupied more"
    moved = [(*atom[:6], atom[6] + 5) for atom in helices()]
    models = ["MODEL        1", *pdb_lines(helices()), "ENDMDL", "MODEL        2", *pdb_lines(moved), "ENDMDL"]
    np.testing.assert_array_equal(read_chain(str(write(file, models))).points, alone.points)
    modified = [("HETATM", atom[1], "MSE", *atom[3:]) if atom[3] == 1 else atom for atom in helices()]
    free = [("HETATM", atom[1], "GLU", 900, "", "", atom[6] + 40) for atom in helices()[:4]]
    water = [("HETATM", "O", "HOH", 901, "", "", np.zeros(3))]
    assert read_chain(str(write(file, list(pdb_lines(modified + free + water))))).sequence == SEQUENCE


def test_chains_are_chosen_by_name(file) -> None:
    other = helices("KKLLEELKAAGSALEKLLEE")
    both = write(file, list(pdb_lines(helices())), list(pdb_lines(other, "B")))
    assert read_chain(f"{both}:B").sequence == "KKLLEELKAAGSALEKLLEE"
    with pytest.raises(InputError, match=r"pair.pdb has the protein chains A, B; choose one, for example .*pair.pdb:A"):
        read_chain(str(both))
    with pytest.raises(InputError, match=r"pair.pdb has no protein chain Z; it has A, B"):
        read_chain(f"{both}:Z")
    alike = write(file, list(pdb_lines(helices())), list(pdb_lines(helices(), "B")))
    assert read_chain(str(alike)).name == "pair.pdb:A"


def test_files_are_told_by_their_contents(tmp_path, file) -> None:
    write(file, list(pdb_lines(helices())))
    packed = tmp_path / "pair.ent.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert read_chain(str(packed)).sequence == SEQUENCE and is_structure(packed)
    fasta = write_fasta(tmp_path / "p.fasta", {"P": "MKV"})
    assert not is_structure(fasta)
    with pytest.raises(InputError, match=r"p.fasta is no structure: expected PDB or mmCIF"):
        read_chain(str(fasta))
    with pytest.raises(InputError, match=r"absent.pdb does not exist"):
        read_chain(str(tmp_path / "absent.pdb"))
    broken = tmp_path / "broken.cif"
    broken.write_text("data_X\nloop_\n_atom_site.id\n_atom_site.group_PDB\n1 ATOM\n")
    with pytest.raises(InputError, match=r"broken.cif is no valid mmCIF file"):
        read_chain(str(broken))
    with pytest.raises(InputError, match="has no protein chain"):
        read_chain(str(write(file, list(pdb_lines([("HETATM", "O", "HOH", 1, "", "", np.zeros(3))])))))
    with pytest.raises(InputError, match=r"pair.pdb:A has no Cβ"):
        read_chain(str(write(file, list(pdb_lines([a for a in helices("AAKL") if a[1] != "CB"])))))


def test_placed_in_a_longer_sequence(file) -> None:
    chain = read_chain(str(write(file, list(pdb_lines(helices())))))
    whole = records("VVV" + SEQUENCE + "KK")[0]
    placed = chain.placed_in(whole)
    assert placed.sequence == whole.sequence and placed.is_seen.tolist() == [False] * 3 + [True] * 32 + [False] * 2
    np.testing.assert_array_equal(placed.points[3:35], chain.points)
    other = records("VVV" + SEQUENCE.replace("G", "A", 1))[0]
    with pytest.raises(
        InputError, match=r"pair.pdb:A does not match sequence P0: residue 15 is G, position 18 .* is A"
    ):
        chain.placed_in(other)
    with pytest.raises(InputError, match="32 residues from the first to the last seen, sequence P0 only 3"):
        chain.placed_in(records("MKV")[0])
    unknown = Chain("unknown", "XX", np.ones((2, 3)), ("1", "2"))
    with pytest.raises(InputError, match="unknown has no residue that is known"):
        unknown.placed_in(whole)
    gaps = Chain("gaps", "XXAEXXKK", np.full((8, 3), 1.0), ("", "", "3", "4", "", "", "7", "8"))
    assert gaps.placed_in(records("AELLKKL")[0]).numbers == ("3", "4", "", "", "7", "8", "")
