"""Chains out of PDB and mmCIF files, with what such files have besides plain residues."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from protein_lm.errors import InputError
from protein_lm.io.readers import read_records
from protein_lm.io.structures.chains import Chain, is_structure, read_chain
from tests.conftest import write_fasta
from tests.inference.toys import records
from tests.io.structure_files import SEQUENCE, Atom, cif_text, helices, pdb_lines, seqres_lines


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
    broken.write_text("data_X\nloop_\n1 2\n")
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


def renamed(atoms: list[Atom], names: dict[int, str], record: str = "ATOM") -> list[Atom]:
    return [(record, atom[1], names[atom[3]], *atom[3:]) if atom[3] in names else atom for atom in atoms]


@pytest.mark.parametrize(
    ("letter", "names"),
    [
        ("H", "HSD HSE HSP HID HIE HIP HISE DHI"),
        ("C", "CYX CYM CYS2 CSO CME OCS"),
        ("D", "ASH ASPP"),
        ("E", "GLH GLUP"),
        ("K", "LYN LYSH MLY KCX"),
        ("R", "ARN NARG CARG"),
        ("A", "NALA CALA DAL"),
        ("L", "NLEU CLEU"),
        ("M", "MSE"),
        ("S", "SEP"),
        ("T", "TPO"),
        ("Y", "PTR TYM"),
        ("P", "HYP"),
        ("U", "SEC"),
        ("O", "PYL"),
        ("B", "ASX"),
        ("X", "UNK"),
    ],
)
def test_names_of_force_fields_and_of_modified_residues(file, capsys, letter, names) -> None:
    for name in names.split():
        atoms = renamed(helices("AKLAKKLGELAKAGGE"), {1: name, 6: name, 16: name})
        lines = [line[:17] + line[17:].replace(f"{name} A", f"{name:<4}A") for line in pdb_lines(atoms)]
        assert {len(line) for line in lines} == {78}
        chain = read_chain(str(write(file, lines)))
        assert chain.sequence == f"{letter}KLAK{letter}LGELAKAGG{letter}", name
    assert capsys.readouterr().err == ""


def test_what_a_file_says_of_its_modified_residues_comes_first(file, tmp_path, capsys) -> None:
    atoms = renamed(helices("AKLAKKLGELAKAGGE"), {1: "HSE", 6: "QQQ", 16: "GLH"}, "HETATM")
    atoms = renamed(atoms, {10: "CRO"})
    modified = [
        f"MODRES 1ABC {name} A   {number:>2}  {parent}"
        for name, number, parent in (
            ("HSE", 1, "SER"),
            ("QQQ", 6, "TYR"),
            ("GLH", 16, "GLN"),
            ("CRO", 10, "SER"),
            ("CRO", 10, "GLY"),
            ("ALA", 2, "VAL"),
        )
    ]
    wanted = "SKLAKYLGEXAKAGGQ"
    assert read_chain(str(write(file, modified, list(pdb_lines(atoms))))).sequence == wanted
    assert capsys.readouterr().err == "pair.pdb:A: residues named CRO are unknown, and read as X\n"
    keys = (f"_pdbx_struct_mod_residue.{key}\n" for key in ("id", "label_comp_id", "parent_comp_id"))
    table = "loop_\n" + "".join(keys) + "1 HSE SER\n2 QQQ TYR\n3 GLH GLN\n#\n"
    cif = tmp_path / "pair.cif"
    cif.write_text(cif_text(atoms, "").replace("#\n", "#\n" + table, 1))
    assert read_chain(str(cif)).sequence == wanted


def test_unknown_residues_with_a_backbone_stay_and_are_named(file, capsys) -> None:
    names = {1: "ZZ1", 6: "ZZ2", 32: "ZZ1"}
    for record in ("ATOM", "HETATM"):
        atoms = renamed(helices(), names, record)
        apart = [(record, atom[1], "LIG", 900, "", "", atom[6] + 40) for atom in helices()[3:4]]
        ion = [("HETATM", "CA", "CA", 901, "", "", np.zeros(3))]
        chain = read_chain(str(write(file, list(pdb_lines(atoms + apart + ion)))))
        assert chain.sequence == "X" + SEQUENCE[1:5] + "X" + SEQUENCE[6:31] + "X" and chain.is_seen.all()
        assert capsys.readouterr().err == "pair.pdb:A: residues named ZZ1, ZZ2 are unknown, and read as X\n"
        declared = read_chain(str(write(file, list(seqres_lines(SEQUENCE)), list(pdb_lines(atoms)))))
        assert declared.sequence == SEQUENCE and declared.is_seen.all()
        capsys.readouterr()


def test_a_modified_glycine_is_at_its_alpha_carbon(file) -> None:
    alone = read_chain(str(write(file, list(pdb_lines(helices())))))
    place = SEQUENCE.index("G")
    modified = read_chain(str(write(file, list(pdb_lines(renamed(helices(), {place + 1: "SAR"}, "HETATM"))))))
    assert modified.sequence == SEQUENCE
    np.testing.assert_array_equal(modified.points, alone.points)


def moved(atoms: list[Atom], numbers: int, far: float = 50.0) -> list[Atom]:
    return [(*atom[:3], atom[3] + numbers, *atom[4:6], atom[6] + far) for atom in atoms]


def test_two_molecules_under_one_letter_are_refused(file, tmp_path) -> None:
    first, second = helices(), helices("KKLLEELKAAGSALEK")
    one = list(pdb_lines(first))
    for numbers, message in (
        (0, "pair.pdb:A has two residues 1, as where two molecules have one chain letter; give each molecule its own"),
        (
            32,
            "pair.pdb:A is two molecules: no bond leads from the last residue of one, 32, to the first of the next, 33",
        ),
        (
            300,
            "pair.pdb:A is two molecules: .*, to the first of the next, 301; give each molecule its own chain letter",
        ),
        (-20, "pair.pdb:A is two molecules: .*, to the first of the next, -19"),
    ):
        path = write(file, one, ["TER"], list(pdb_lines(moved(second, numbers))))
        with pytest.raises(InputError, match=message):
            read_chain(str(path))
    cif = tmp_path / "pair.cif"
    cif.write_text(cif_text(first + moved(first, 0), SEQUENCE))
    with pytest.raises(InputError, match=r"pair.cif:A has two residues 1, as where"):
        read_chain(str(cif))
    with pytest.raises(InputError, match="48 residues that do not fit the 60 of its declared sequence"):
        read_chain(str(write(file, list(seqres_lines(SEQUENCE + "A" * 28)), one, list(pdb_lines(moved(second, 32))))))
    with_other = write(file, one, list(pdb_lines(moved(second, 0))), list(pdb_lines(second, "B")))
    assert read_chain(f"{with_other}:B").sequence == "KKLLEELKAAGSALEK"
    cut = [*one[:20], "TER", *one[20:]]
    assert read_chain(str(write(file, cut))).sequence == SEQUENCE, "a bond leads over it"
    frames = write(file, one, ["END"], list(pdb_lines(moved(first, 0))))
    assert read_chain(str(frames)).points[0, 0] < 40, "of a trajectory the first frame counts"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "head",
    ["PARENT N/A", "AUTHOR    SOMEBODY", "EXPDTA    THEORETICAL MODEL", "PFRMAT TS\nTARGET T1024", "\ufeffHEADER", ""],
)
def test_structures_are_told_by_their_atoms(tmp_path, head, end) -> None:
    path = tmp_path / "model"
    path.write_bytes(end.join([*head.split("\n"), *pdb_lines(helices()), "END", ""]).encode())
    assert is_structure(path) and read_chain(str(path)).sequence == SEQUENCE
    with pytest.raises(InputError, match=r"model looks like a structure \(PDB\)"):
        list(read_records(path))


@pytest.mark.parametrize("head", ["# comment\n\n#\ndata_X\n", "\ufeffdata_X\n"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_heads_of_mmcif(tmp_path, head, end) -> None:
    path = tmp_path / "model"
    path.write_bytes(cif_text(helices(), SEQUENCE).replace("data_TEST\n", head).replace("\n", end).encode())
    assert is_structure(path) and read_chain(str(path)).sequence == SEQUENCE


def test_headers_of_fasta_may_speak_of_atoms(tmp_path) -> None:
    path = tmp_path / "p.fasta"
    path.write_text(">a\nMK\nATOM  \n")
    assert not is_structure(path)
