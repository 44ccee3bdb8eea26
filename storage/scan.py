"""Rows read by the piece: the columns, the rows and the shards that are asked for, one shard in memory at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from storage.manifest import Manifest, Part, Shard, StoreError

AT = "#row"  # place of a row among all, from 0; no column of a dataset has such a name
Lazily = Callable[[pl.LazyFrame], pl.LazyFrame]


@dataclass(frozen=True, slots=True)
class Scan:
    """The rows of a dataset, or of one of its side tables.

    Raises StoreError where a part is gone or damaged; what lies in other shards can be read all the same.
    """

    root: Path
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, root: Path, made: Manifest, side: str | None = None) -> "Scan":
        return cls(root, made.shards if side is None else tuple((part,) for part in made.side[side]))

    @property
    def rows(self) -> int:
        return sum(shard[0].rows for shard in self.shards if shard)

    def columns(self) -> tuple[dict[str, pl.DataType], dict[str, tuple[float, float]]]:
        """The type of each column, and the least and the greatest number of those of numbers.

        Told by the ends of the files alone. A part that cannot be read is left out here and missed when it is read.
        """
        kinds: dict[pa.Schema, None] = {}
        ranges: dict[str, tuple[float, float]] = {}
        for shard in self.shards:
            for part, mine in _owners(shard).items():
                try:
                    footer = pq.read_metadata(self.root / part.file)
                except (OSError, pa.ArrowException):
                    continue
                schema = footer.schema.to_arrow_schema()
                kinds[pa.schema([f for f in schema if f.name in mine]).remove_metadata()] = None
                for name, ends in _extremes(footer, schema, mine):
                    known = ranges.get(name, ends)
                    ranges[name] = (min(known[0], *ends), max(known[1], *ends))
        empty = [pl.DataFrame(pl.from_arrow(schema.empty_table())) for schema in kinds]
        merged = pl.concat(empty, how="diagonal_relaxed").schema if empty else {}
        return dict(merged), ranges

    def each(
        self, columns: Sequence[str], query: Lazily, kinds: Mapping[str, pl.DataType] | None = None
    ) -> Iterator[pl.DataFrame]:
        """What `query` makes of each shard's columns and AT, shard by shard.

        With `kinds`, the types of the whole, each has these; and a column that a shard lacks is null in it.
        """
        start = 0
        for shard in self.shards:
            if shard:

                def lazily(shard: Shard = shard, start: int = start) -> pl.LazyFrame:
                    return query(_alike(self._beside(shard, columns, start), columns, kinds))

                yield self._read(shard, lazily)
                start += shard[0].rows

    def take(self, places: Sequence[int], columns: Sequence[str]) -> pl.DataFrame:
        """The rows at these places, in this order, with AT; only the shards that they lie in are read."""
        frames, start = [], 0
        for shard in self.shards:
            rows = shard[0].rows if shard else 0
            if mine := [place for place in places if start <= place < start + rows]:
                frames.append(self._read(shard, lambda s=shard, i=start, m=mine: self._beside(s, columns, i, m)))
            start += rows
        wanted = pl.DataFrame({AT: pl.Series(list(places), dtype=pl.UInt32)})
        found = pl.concat(frames, how="diagonal_relaxed") if frames else wanted.clear()
        return wanted.join(found, on=AT, how="inner", maintain_order="left")

    def _beside(
        self, shard: Shard, columns: Sequence[str], start: int, places: Sequence[int] | None = None
    ) -> pl.LazyFrame:
        """The parts that hold the columns, side by side.

        Each is cut to the rows that are asked for before, so that of a wide part little is decoded.
        """
        frames = []
        for part, mine in (_owners(shard, columns) or {shard[0]: []}).items():
            frame = pl.scan_parquet(self.root / part.file, row_index_name=AT, row_index_offset=start)
            if places is not None:
                first, last = min(places), max(places)
                frame = frame.slice(first - start, last - first + 1).filter(pl.col(AT).is_in(places))
            frames.append(frame.select(mine if frames else [AT, *mine]))
        return frames[0] if len(frames) == 1 else pl.concat(frames, how="horizontal")

    def _read(self, shard: Shard, lazily: Callable[[], pl.LazyFrame]) -> pl.DataFrame:
        try:
            return lazily().collect()
        except (pl.exceptions.PolarsError, OSError) as why:
            broken = next((part.file for part in shard if not _whole(self.root / part.file)), None)
            if broken is None:
                raise
            raise StoreError(f"{broken} is gone or damaged; `thresher verify` says what else is") from why


def _alike(frame: pl.LazyFrame, columns: Sequence[str], kinds: Mapping[str, pl.DataType] | None) -> pl.LazyFrame:
    if kinds is None:
        return frame
    here = frame.collect_schema()
    cast = {c: pl.col(c).cast(kinds[c], strict=False) if c in here else pl.lit(None, kinds[c]) for c in columns}
    return frame.select(AT, *[c if here.get(c) == kinds[c] else cast[c].alias(c) for c in columns])


def _whole(path: Path) -> bool:
    try:
        return pq.read_table(path) is not None
    except (OSError, pa.ArrowException):
        return False


def _owners(shard: Shard, columns: Sequence[str] | None = None) -> dict[Part, list[str]]:
    """The parts that hold the columns, each with those that no later part holds too."""
    owner = {column: part for part in shard for column in part.columns}
    found: dict[Part, list[str]] = {}
    for column in owner if columns is None else [c for c in columns if c in owner]:
        found.setdefault(owner[column], []).append(column)
    return found


def _extremes(footer: pq.FileMetaData, schema: pa.Schema, mine: list[str]) -> Iterator[tuple[str, tuple[float, float]]]:
    """The ends of each column of numbers in each row group, where the file tells them."""
    flat = [i for i in range(footer.num_columns) if footer.schema.column(i).path in mine]
    numbers = [i for i in flat if _is_number(schema.field(footer.schema.column(i).path).type)]
    for group in range(footer.num_row_groups):
        for i in numbers:
            said = footer.row_group(group).column(i).statistics
            if said is not None and said.has_min_max:
                yield footer.schema.column(i).path, (said.min, said.max)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)
