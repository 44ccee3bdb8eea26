"""What a dataset says of itself: its parts, where it came from, how it was made; and the layout of a whole store."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

# 1: stores without `store.json`, manifests without `code`. Raise it when what lies in a store is no longer read right
# by the Thresher before.
LAYOUT = 2
LAYOUT_FILE = "store.json"


class StoreError(Exception):
    """Something a person can mend: the message names the thing and the remedy."""


@dataclass(frozen=True, slots=True)
class Part:
    file: str
    rows: int
    digest: str
    columns: tuple[str, ...]

    @property
    def facts(self) -> str:
        """The file with what making it cost, beside it."""
        return self.file.removesuffix(".parquet") + ".json"


Shard = tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything needed to say where a dataset came from, and to make it again."""

    id: str
    kind: str  # rows, choice, table or adapter
    step: str
    version: int
    config: dict[str, Any]
    engines: dict[str, str]  # role: identity of the model that played it
    inputs: dict[str, str]  # name of the input: dataset id
    shards: tuple[Shard, ...] = ()
    side: dict[str, Shard] = field(default_factory=dict)  # origin and rejects of an import
    files: dict[str, str] = field(default_factory=dict)  # an adapter's files and their digests
    counts: dict[str, int] = field(default_factory=dict)
    code: str = ""  # digest of the file that a step of the user's own is in

    @property
    def digest(self) -> str:
        """Digest of the content, whoever made it: what the keys of later datasets are made of."""
        return key_of([[p.digest for p in shard] for shard in self.shards], sorted(self.files.items()))

    @property
    def summary(self) -> str:
        """The counts as people read them: "2,650 live, 93 dropped by duplicates"."""
        return ", ".join(f"{n:,} {what}" for what, n in self.counts.items())

    @property
    def size(self) -> str:
        """How much there is of it, in a few words: "39 of 60 live", "13 of 39 taken", "60 rows", "3 files"."""
        said = self.counts
        if "taken" in said:
            return f"{said['taken']:,} of {said['rows']:,} taken"
        if "rows" not in said:
            return f"{len(self.files):,} file{'s' * (len(self.files) != 1)}"
        all_live = said.get("live", said["rows"]) == said["rows"]
        return f"{said['rows']:,} rows" if all_live else f"{said['live']:,} of {said['rows']:,} live"

    @property
    def parts(self) -> dict[str, Part]:
        """Every part of its shards and side tables, by file."""
        return {part.file: part for shard in (*self.shards, *self.side.values()) for part in shard}

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True, ensure_ascii=False)


def read_manifest(path: Path) -> Manifest:
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Raises StoreError, naming the file, where it is no manifest that this Thresher can read."""
    try:
        said = json.loads(content)
        if unknown := sorted(set(said) - {f.name for f in fields(Manifest)}):
            raise StoreError(
                f"{where} says {unknown}, which this Thresher does not know: a newer one wrote it; use that one"
            )
        said["shards"] = tuple(tuple(_part(p) for p in shard) for shard in said["shards"])
        said["side"] = {name: tuple(_part(p) for p in parts) for name, parts in said.get("side", {}).items()}
        return Manifest(**said)
    except (ValueError, TypeError, KeyError, AttributeError) as why:
        raise StoreError(f"{where} is broken ({why}); `thresher verify` says what else is") from None


def read_layout(root: Path) -> int:
    """The layout of the store in a folder. Raises StoreError for one that this Thresher would misread."""
    path = root / LAYOUT_FILE
    try:
        return checked_layout(path.read_bytes(), str(root))
    except FileNotFoundError:
        return 1


def checked_layout(content: bytes, where: str) -> int:
    """The layout that a store's `store.json` tells of."""
    try:
        layout = int(json.loads(content)["layout"])
    except (ValueError, TypeError, KeyError):
        raise StoreError(
            f"{where}/{LAYOUT_FILE} does not say the store's layout; put it back, or copy the store again"
        ) from None
    if layout > LAYOUT:
        raise StoreError(
            f"{where} has layout {layout}, and this Thresher reads layouts up to {LAYOUT}: a newer one wrote it; "
            "use that one, or name another --store"
        )
    return layout


def layout_text() -> str:
    return json.dumps({"layout": LAYOUT}) + "\n"


def key_of(*content: Any) -> str:
    """A 20-digit hash of anything that JSON can hold."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _part(said: dict[str, Any]) -> Part:
    return Part(**{**said, "columns": tuple(said["columns"])})
