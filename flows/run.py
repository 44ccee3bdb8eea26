"""The one way a step is run. The command line and every flow come through here."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from curation.step import Step, StepConfig
from flows.spending import cut_short, of_shards, with_cut_short
from storage.schema import CHOICE, ROW
from storage.store import Manifest, Part, Shard, Store, StoreError, key_of

_SCHEMA = {"select": CHOICE, "make": ROW}
_KIND = {"select": "choice", "table": "table"}  # all others make rows


@dataclass(frozen=True, slots=True)
class Piece:
    """What a step is given at a time: a shard of its rows, or all of them."""

    keys: Sequence[str]
    """Of the parts that it makes; what they cost is noted beside the first."""

    rows: Callable[[], pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Worked:
    """What a step made of a piece, and what it took: seconds, and what was asked of the engines."""

    piece: int
    rows: pl.DataFrame | None  # None where another process has made it meanwhile
    took: Mapping[str, float]


Tables = Mapping[str, pl.DataFrame]
# The pieces as they are done, in any order; what was spent on one that is cut short is noted (`flows.spending`).
Work = Callable[[Store, Step, StepConfig, Sequence[Piece], Tables], Iterator[Worked]]


@dataclass(frozen=True, slots=True)
class Lease:
    """The engines of a step, opened only when a part is really missing."""

    identities: Mapping[str, str] = field(default_factory=dict)
    open: Callable[[], AbstractContextManager[Mapping[str, Any]]] = lambda: nullcontext({})
    spent: Mapping[str, float] = field(default_factory=dict)  # what was asked of the engines so far
    adapters: Mapping[str, str] = field(default_factory=dict)  # role: the adapter dataset of this store that plays it
    elsewhere: Work | None = None  # how shards are worked on by other processes, with engines of their own


Progress = Callable[[int, int], None]  # rows done, rows in all


def plan_step(
    store: Store,
    step: Step,
    config: StepConfig,
    rows: str,
    tables: Mapping[str, str] | None = None,
    lease: Lease = Lease(),
) -> Manifest:
    """The dataset that running the step would make, without its shards; its id says whether it is there already."""
    if (kind := store.manifest(rows).kind) != "rows":
        raise StoreError(f"{step.name} works on rows, and {rows} is a {kind}; name a dataset of rows")
    tables = {name: dataset for name, dataset in (tables or {}).items() if name in step.tables}
    settings = config.model_dump(mode="json")
    engines = {role: lease.identities[role] for role in step.asks(config)}
    digests = {name: store.manifest(dataset).digest for name, dataset in tables.items()}
    key = key_of(step.name, step.edition, settings, engines, digests, store.manifest(rows).digest)
    return Manifest(
        id=f"{step.name}-{key[:12]}",
        kind=_KIND.get(step.kind, "rows"),
        step=step.name,
        version=step.version,
        config=settings,
        engines=engines,
        inputs={"rows": rows, **tables, **lease.adapters},
        code=step.code,
    )


def run_step(
    store: Store,
    step: Step,
    config: StepConfig,
    rows: str,
    tables: Mapping[str, str] | None = None,
    lease: Lease = Lease(),
    progress: Progress = lambda done, total: None,
) -> str:
    """Apply a step to a dataset and return the id of the dataset it made.

    What was computed once is found again by its key; a run that was cut short goes on at its first missing part.
    """
    made = plan_step(store, step, config, rows, tables, lease)
    if store.exists(made.id):
        return made.id
    started = time.time()
    shards = _run_shards(store, step, config, made, lease, progress)
    given = store.manifest(rows)
    live = given.counts.get("live", sum(shard[0].rows for shard in given.shards if shard))
    asked = live + given.counts.get(f"dropped by {step.revives}", 0)
    spent = of_shards(store, shards)
    store.note_run(made.id, started=started, seconds=round(time.time() - started, 3), rows=asked, **spent)
    return store.seal(with_counts(store, made, shards, step.writes, by_reason=step.kind == "make"))


def _run_shards(
    store: Store,
    step: Step,
    config: StepConfig,
    made: Manifest,
    lease: Lease,
    progress: Progress,
) -> list[Shard]:
    """The shards of the result; only what has no part yet is computed."""
    source = store.manifest(made.inputs["rows"])
    tables = {name: dataset for name, dataset in made.inputs.items() if name in step.tables}
    digests = {name: store.manifest(dataset).digest for name, dataset in tables.items()}
    made_of = (made.step, step.edition, made.config, made.engines, digests)
    wanted = ({*ROW.names} - {*step.without}) | {*step.reads, *step.takes, *config.columns()}
    read = [_projected(shard, wanted) for shard in source.shards]
    if by_shard(step):
        groups = [[i] for i in range(len(read))]
        keys = [[key_of(made_of, _digests(r))] for r in read]
    else:
        groups = [list(range(len(read)))]
        keys = [[key_of(made_of, [_digests(r) for r in read], i) for i in range(len(read))]]
    if step.kind in ("select", "table", "make"):  # what comes out has no shard of the input to stand beside
        keys = [group[:1] or [key_of(made_of, [])] for group in keys]
    elif step.kind == "revise":  # the rows it was given, beside which its columns stand, and a part of new ones
        keys = [[*group, key_of(group, "new rows")] for group in keys]

    shard_rows = [shard[0].rows if shard else 0 for shard in source.shards]
    made_parts = {n: parts for n, named in enumerate(keys) if (parts := parts_of(store, named))}
    missing = [n for n in range(len(keys)) if n not in made_parts]
    pieces = [Piece(keys[n], partial(_given, store, source, [read[i] for i in groups[n]])) for n in missing]
    heights = [[shard_rows[i] for i in group] for group in groups]
    done = sum(sum(heights[n]) for n in made_parts)
    progress(done, sum(shard_rows))
    others = {name: store.read(dataset) for name, dataset in tables.items()} if pieces else {}
    alone = len(pieces) < 2 and not step.asks(config)  # not worth a way
    work = partial(_here, lease) if alone or lease.elsewhere is None or not by_shard(step) else lease.elsewhere
    with closing(work(store, step, config, pieces, others)) as results:
        for worked in results:
            n = missing[worked.piece]
            if (parts := parts_of(store, keys[n])) is None:
                store.note_part(keys[n][0], **with_cut_short(store, keys[n][0], worked.took))
                parts = _put(store, step, worked.rows, heights[n], keys[n])
            made_parts[n] = parts
            done += sum(heights[n])
            progress(done, sum(shard_rows))

    out, new = {}, []
    for n, group in enumerate(groups):
        out.update(zip(group or [0], made_parts[n], strict=False))
        new += made_parts[n][len(group) :] if step.kind == "revise" else []
    if step.kind in ("score", "filter", "revise"):
        return [(*source.shards[i], out[i]) for i in sorted(out) if i < len(read)] + [(p,) for p in new if p.rows]
    return [(out[i],) for i in sorted(out)]


def parts_of(store: Store, keys: Sequence[str]) -> list[Part] | None:
    """The parts of a piece, where they are all there: looked up anew each time, another process may be at the step."""
    parts = [store.part(key) for key in keys]
    return None if None in parts else parts


def by_shard(step: Step) -> bool:
    """Whether the step sees one shard at a time; others see all rows at once."""
    return step.scope == "shard" and step.kind not in ("select", "table")


def written(step: Step, rows: pl.DataFrame) -> pl.DataFrame:
    """Of what a step gave back, what becomes a part: of rows that it was given its own columns alone."""
    if step.kind not in ("score", "filter", "revise"):
        return rows
    own = ["id", *step.writes, *(["drop_reason"] if step.kind != "score" else [])]
    return rows.select(list(dict.fromkeys(own)))


def _given(store: Store, source: Manifest, shards: list[Shard]) -> pl.DataFrame:
    frames = [store.read_shard(shard) for shard in shards]
    return pl.concat(frames, how="diagonal_relaxed") if frames else store.read(source.id)


def _here(
    lease: Lease, store: Store, step: Step, config: StepConfig, pieces: Sequence[Piece], tables: Tables
) -> Iterator[Worked]:
    """One piece after another, in this process."""
    with _lazily(lease) as engines:
        for n, piece in enumerate(pieces):
            if parts_of(store, piece.keys):
                yield Worked(n, None, {})
                continue
            given = piece.rows()
            began, before = time.monotonic(), dict(lease.spent)
            try:
                result = step(given, config, engines() if step.roles else {}, tables)
            except BaseException:
                cut_short(store, piece.keys[0], _took(lease, before, began))
                raise
            yield Worked(n, result, _took(lease, before, began))


def _took(lease: Lease, before: Mapping[str, float], began: float) -> dict[str, float]:
    """Of one part: seconds, and what was asked of the engines since `before`."""
    spent = {what: amount - before.get(what, 0) for what, amount in lease.spent.items()}
    return {"seconds": round(time.monotonic() - began, 3), **spent}


def _put(store: Store, step: Step, result: pl.DataFrame, heights: list[int], keys: list[str]) -> list[Part]:
    if step.kind in _SCHEMA:
        return [store.put_part(keys[0], result, _SCHEMA[step.kind])]
    if step.kind == "table":
        return [store.put_part(keys[0], result.select(step.writes))]
    own = written(step, result)
    starts = [sum(heights[:i]) for i in range(len(heights))]
    beside = [
        store.put_part(key, own.slice(start, height)) for key, start, height in zip(keys, starts, heights, strict=False)
    ]
    made = [store.put_part(keys[-1], result.slice(sum(heights)), ROW)] if step.kind == "revise" else []
    return beside + made


def _projected(shard: Shard, wanted: set[str]) -> Shard:
    """The shard with only the columns that the step may see, so that what it does not read cannot change its key."""
    seen: set[str] = set()
    kept = []
    for part in reversed(shard):  # a later part hides the same column of an earlier one
        mine = wanted if part is shard[0] else wanted - {"id"}  # every part has the ids; the rows' own is always kept
        columns = tuple(c for c in part.columns if c in mine and c not in seen)
        seen.update(columns)
        if columns or part is shard[0]:
            kept.append(Part(part.file, part.rows, part.digest, columns))
    return tuple(reversed(kept))


def _digests(shard: Shard) -> list[list]:
    return [[part.digest, sorted(part.columns)] for part in shard]


class _lazily:
    """Opens a lease at the first call and closes it at the end."""

    def __init__(self, lease: Lease) -> None:
        self.lease, self.context, self.engines = lease, None, None

    def __enter__(self) -> Callable[[], Mapping[str, Any]]:
        def engines() -> Mapping[str, Any]:
            if self.engines is None:
                self.context = self.lease.open()
                self.engines = self.context.__enter__()
            return self.engines

        return engines

    def __exit__(self, *error: object) -> None:
        if self.context is not None:
            self.context.__exit__(*error)


def with_counts(
    store: Store, made: Manifest, shards: list[Shard], writes: Iterable[str] = (), by_reason: bool = False
) -> Manifest:
    """The manifest with its shards and what they hold: rows, live rows, rows by drop reason, and facts that it found.

    A fact is a column of yes and no among `writes`, the columns that its step wrote. What a step that makes rows
    refused itself is counted by its reasons too, up to the colon after which they speak of one row.
    """
    rows = sum(shard[0].rows for shard in shards)
    counts = {"rows": rows}
    if made.kind == "rows":
        reasons = pl.concat([store.read_shard(s, ["drop_reason"]) for s in shards]) if shards else pl.DataFrame()
        if reasons.width:
            tally = reasons["drop_reason"].str.split(": ").list.first().alias("step")
            dropped = tally.drop_nulls().value_counts().sort("step")
            counts |= {"live": int(reasons["drop_reason"].null_count())}
            counts |= {f"dropped by {s}": int(n) for s, n in dropped.iter_rows()}
            if by_reason:
                why = reasons["drop_reason"].drop_nulls().str.split(": ").list.get(1, null_on_oob=True).alias("why")
                refused = why.drop_nulls().value_counts().sort("count", "why", descending=[True, False])
                counts |= {f"refused, {w}": int(n) for w, n in refused.iter_rows()}
        for column in (c for c in writes if shards and c in store.flags(shards[0])):
            counts[column] = sum(int(store.read_shard(s, [column])[column].sum()) for s in shards)
    elif made.kind == "choice":
        counts["taken"] = int(sum(store.read_shard(s, ["taken"])["taken"].sum() for s in shards))
    return Manifest(**{**{f: getattr(made, f) for f in made.__slots__}, "shards": tuple(shards), "counts": counts})
