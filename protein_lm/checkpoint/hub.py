"""Models on the Hugging Face Hub: found by name, fetched once into the Hub's cache, and pushed.

Only the files of a model directory are ever fetched. `HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME` and `HF_HUB_OFFLINE` mean what
they mean to every program of the Hub.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from protein_lm.errors import ModelError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@\w[\w./-]*)?")


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form org/model or org/model@revision.

    >>> is_hub_name("org/model@v1.0"), is_hub_name("runs/2026/best"), is_hub_name("./run")
    (True, False, False)
    """
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class HubModel:
    """A repository of the Hub at one revision."""

    name: str
    """org/model, or org/model@revision."""
    commit: str | None = None
    """The revision's commit; None if the Hub cannot be reached and there is only the cache."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each of its files at that commit."""

    @classmethod
    def find(cls, name: str) -> "HubModel":
        """Ask the Hub for a model.

        Raises:
            ModelError: the Hub has no such model or revision, or does not give it.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        repository, revision = _parts(name)
        try:
            info = HfApi().model_info(repository, revision=revision, files_metadata=True)
        except GatedRepoError as error:
            raise ModelError(f"{name}: the Hub gives it to those who agreed to its terms; do so on its page") from error
        except RevisionNotFoundError as error:
            raise ModelError(f"{name}: {repository} is on the Hub, but has no revision {revision!r}") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise ModelError(
                f"{name}: no such model directory or run, and no model on the Hub that you may read; correct the name, or "
                "log in with: hf auth login"
            ) from error
        except HfHubHTTPError as error:
            raise ModelError(f"{name}: no such model directory or run, and the Hub fails: {_line(error)}") from error
        except (OSError, httpx2.HTTPError):  # no network, or HF_HUB_OFFLINE
            return cls(name)
        return cls(name, info.sha, {file.rfilename: file.size or 0 for file in info.siblings or ()})

    def fetch(self, files: Sequence[str]) -> Path:
        """Fetch those of `files` that the model has into the cache; their folder. Standard error names what is fetched.

        Raises:
            ModelError: the Hub cannot be reached and the cache does not have the model, or the connection breaks.
        """
        from huggingface_hub import snapshot_download, try_to_load_from_cache

        repository, revision = _parts(self.name)
        missing = [
            file
            for file in files
            if file in self.sizes and not try_to_load_from_cache(repository, file, revision=self.commit)
        ]
        if missing:
            sizes = ", ".join(f"{file} ({self.sizes[file]:,} bytes)" for file in missing)
            print(f"{self.name}: fetching {sizes} from the Hub", file=sys.stderr, flush=True)
        is_offline = self.commit is None
        try:
            folder = snapshot_download(
                repository, revision=revision, allow_patterns=list(files), local_files_only=is_offline
            )
        except (OSError, httpx2.HTTPError) as error:
            if is_offline:
                raise ModelError(
                    f"{self.name}: no such model directory or run, and the Hub cannot be reached to look for a model of that "
                    "name; correct the name, or try again with a network"
                ) from error
            raise ModelError(f"{self.name}: fetching it from the Hub failed, try again: {_line(error)}") from error
        return Path(folder)


def push(folder: Path, files: Sequence[str], repository: str, *, private: bool = False) -> str:
    """Put those of `files` that `folder` has into a repository of the Hub as one commit; a missing repository is made.

    Returns:
        The address of the commit.

    Raises:
        ModelError: the name does not have the form org/model, or the Hub cannot be reached or refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HFValidationError

    if not is_hub_name(repository) or "@" in repository:
        raise ModelError(f"{repository}: no name of a model on the Hub; it has the form org/model")
    api = HfApi()
    additions = [CommitOperationAdd(name, folder / name) for name in files if (folder / name).is_file()]
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.create_commit(repository, additions, commit_message="A model of protein_lm")
    except (OSError, httpx2.HTTPError, HFValidationError) as error:
        raise ModelError(
            f"{repository}: the Hub does not take it; you may have to log in with: hf auth login ({_line(error)})"
        ) from error
    return commit.commit_url


def _parts(name: str) -> tuple[str, str | None]:
    """Repository and revision; None for the main revision."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def _line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
