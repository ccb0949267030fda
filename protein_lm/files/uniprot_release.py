"""UniProt's lists of release files: name, size and MD5 of each file, for `download`.

The server has a `RELEASE.metalink` next to each group of files. A file under its final name has passed both checks.
"""

from xml.etree import ElementTree

from protein_lm.errors import ConfigError, InputError
from protein_lm.files.download import Connection, RemoteFile

BASE = "https://ftp.uniprot.org/pub/databases/uniprot/"
CURRENT = "current"
FILES = {
    "swissprot": "current_release/knowledgebase/complete/uniprot_sprot.fasta.gz",
    "trembl": "current_release/knowledgebase/complete/uniprot_trembl.fasta.gz",
    "uniref50": "current_release/uniref/uniref50/uniref50.fasta.gz",
    "uniref90": "current_release/uniref/uniref90/uniref90.fasta.gz",
    "uniref100": "current_release/uniref/uniref100/uniref100.fasta.gz",
}
"""Names of databases -> their files under the base address."""
METALINK = "RELEASE.metalink"
STORE_BYTES_PER_BYTE = 1.8
"""Bytes of a prepared store per byte of .fasta.gz."""


class UniProtServer(Connection):
    """UniProt's release server, or a mirror of it.

    Args:
        base: address that the paths in FILES are under.
        patience: settings of a `Connection`.

    Raises:
        ConfigError: the address is not http or https.
    """

    def __init__(self, base: str = BASE, **patience: float) -> None:
        if not base.startswith(("http://", "https://")):
            raise ConfigError(f"{base}: the base address must begin with http:// or https://")
        super().__init__(**patience)
        self._base = base if base.endswith("/") else base + "/"

    def find(self, name: str, release: str = CURRENT) -> RemoteFile:
        """Look up a file of the server by its name in FILES.

        Raises:
            ConfigError: an unknown name.
            InputError: the server cannot be reached, does not list the file, or has another release.
        """
        if name not in FILES:
            raise ConfigError(f"{name!r} cannot be fetched; choose from {', '.join(FILES)}")
        url = self._base + FILES[name]
        folder, _, file_name = url.rpartition("/")
        metalink = f"{folder}/{METALINK}"
        listed_release, size, md5 = _listed(self.request(metalink).content, metalink, file_name)
        if release not in (CURRENT, listed_release):
            raise InputError(
                f"the server has release {listed_release}, not {release}; UniProt keeps older ones as archives of several "
                f"files under {self._base}previous_releases/release-{release}/: unpack one and give its files to data prepare"
            )
        return RemoteFile(url, listed_release, size, md5)


def _listed(text: bytes, url: str, name: str) -> tuple[str, int, str]:
    """Return release, size and MD5 of a file in a metalink."""
    try:
        root = ElementTree.fromstring(text)
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
        release = (root.findtext("version") or "").strip()
        for file in root.iter("file"):
            if file.get("name") == name:
                md5 = next(hash_.text or "" for hash_ in file.iter("hash") if hash_.get("type") == "md5")
                return release, int(file.findtext("size") or ""), md5.strip().lower()
    except (ElementTree.ParseError, StopIteration, ValueError) as error:
        raise InputError(f"{url} is no list of files with sizes and checksums; check the base address") from error
    raise InputError(f"{url} does not list {name}; check the base address")
