"""Models of other libraries, recognised by their names and files, and the command that converts each.

Nothing is fetched or unpickled here.
"""

from pathlib import Path
from typing import Any

from esm import pretrained

from protein_lm.checkpoint.config_file import CONFIG
from protein_lm.errors import ModelError, named, quoted
from protein_lm.files import plain_files

RELEASES = tuple(name for name in vars(pretrained) if name.startswith("esm2_"))
"""Names of ESM-2 as its authors released it, by fair-esm."""
_ADAPTERS = "adapter_config.json"
_TORCH_FILES = (b"PK\x03\x04", b"\x80")
"""First bytes of zip archives and bare pickles."""
_LONGEST_NAME = 200
"""Letters of a file's name."""


def as_path(name: str) -> Path:
    """The path of a name, which may be a file, a folder, or nothing.

    Raises:
        ModelError: the system cannot look for it: too long, or not permitted.
    """
    try:
        Path(name).exists()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ModelError(f"{quoted(name)}: cannot be looked for ({reason}); correct the name") from error
    return Path(name)


def describe(name: str) -> str | None:
    """Say what `name` is and what to do about it, if it is known to be no model directory of ours; else None."""
    path = as_path(name)
    if path.is_dir():
        return _describe_folder(path)
    if path.is_file():
        return _describe_file(path)
    release = name.removeprefix("facebook/").partition("@")[0]
    if not path.exists() and release in RELEASES:
        return f"{name}: a release of ESM-2, which is downloaded and made a model with: protein-lm convert {release} -o DIR"
    return None


def is_transformers(path: Path) -> bool:
    """Whether a folder has a config.json of the library transformers, and not one of ours."""
    try:
        return _is_transformers(read_json(path / CONFIG))
    except ModelError:
        return False


def describe_on_hub(name: str, folder: Path) -> str | None:
    """Describe a model of the library transformers on the Hub by its config.json in `folder`; None for others."""
    if not is_transformers(folder):
        return None
    return f"{_kind(folder)}; download it with: {download_command(name)}, and then: protein-lm convert DIR -o MODEL"


def download_command(name: str) -> str:
    """The command that puts org/model or org/model@revision of the Hub into the folder DIR."""
    repository, _, revision = name.partition("@")
    return f"hf download {repository}{f' --revision {revision}' if revision else ''} --local-dir DIR"


def part_of_folder(path: Path) -> str | None:
    """Say what to do about a file that is useless without others of its folder; None for other files."""
    if path.name == CONFIG or ((path.parent / CONFIG).is_file() and path.suffix in (".safetensors", ".bin", ".json")):
        return f"{path}: not a model directory but a file; give the folder that holds it, {path.parent}"
    if path.suffix == ".safetensors":
        return (
            f"{path}: not a model directory but a file, of weights alone; give a folder that holds it and its {CONFIG}"
        )
    return None


def plain_file(folder: Path, name: Any) -> Path:
    """The path of a file that another file in `folder` names. A link may lead out of the folder only into the Hub's cache.

    Raises:
        ModelError: no name of a file in the folder, a missing file, or no plain file.
    """
    if not plain_files.is_plain_name(name) or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise ModelError(f"{folder}: damaged, it names {quoted(name)} where a file of this folder must stand")
    path, home = folder / name, folder.resolve()
    target = path.resolve()
    # The Hub's cache: models--org--name/snapshots/COMMIT/FILE -> ../../blobs/HASH
    caches = [parent.parent / "blobs" for parent in home.parents if parent.name == "snapshots"]
    if target.parent not in (home, *caches):
        raise ModelError(f"{path}: a link out of its folder; put the file itself there")
    if not path.exists():
        raise ModelError(f"{folder}: incomplete, {name} is missing")
    if not path.is_file():
        raise ModelError(f"{path}: no plain file")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file of moderate size.

    Raises:
        ModelError: missing, no plain file, too large, or damaged.
    """
    try:
        return plain_files.read_json(path)
    except FileNotFoundError as error:
        raise ModelError(f"{path.parent}: incomplete, {path.name} is missing") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # of which those of JSON and of Unicode are
        raise ModelError(f"{path}: damaged, not valid JSON ({named(str(error))})") from error


def _describe_folder(path: Path) -> str | None:
    if (path / _ADAPTERS).is_file():
        return _describe_adapters(path)
    if is_transformers(path):
        return f"{path}: {_kind(path)}; make one of it with: protein-lm convert {path} -o DIR"
    if (path / "snapshots").is_dir() and not (path / CONFIG).exists():
        found = next(iter(sorted((path / "snapshots").iterdir())), None)
        return f"{path}: a folder of the Hub's cache; give the model in it, {found}" if found else None
    return None


def _describe_adapters(path: Path) -> str:
    try:
        facts = read_json(path / _ADAPTERS)
    except ModelError:
        facts = None
    base = facts.get("base_model_name_or_path") if isinstance(facts, dict) else None
    stands = f" that stand on {quoted(base)}" if isinstance(base, str) else ""
    return (
        f"{path}: adapters of the library peft{stands}, and no whole model; merge them there (merge_and_unload, then "
        "save_pretrained) and give the folder that this writes"
    )


def _describe_file(path: Path) -> str:
    if (part := part_of_folder(path)) is not None:
        return part
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError:
        begins = b""
    if begins.startswith(_TORCH_FILES):
        return (
            f"{path}: not a model directory but a file of torch; if it holds ESM-2, make a model of it with: protein-lm "
            f"convert {path} -o DIR"
        )
    return f"{path}: not a model directory but a file; give the folder that holds {CONFIG}"


def _is_transformers(config: Any) -> bool:
    is_ours = not isinstance(config, dict) or "format_version" in config
    return not is_ours and ("model_type" in config or "architectures" in config)


def _kind(path: Path) -> str:
    config = read_json(path / CONFIG)
    kind = config.get("model_type", config.get("architectures"))
    only = "" if kind == "esm" else ", of which only ESM-2 can be converted"
    return f"a model of the library transformers, of type {quoted(kind)}{only}"
