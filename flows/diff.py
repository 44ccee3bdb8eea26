"""What became of the rows between two datasets: added, dropped, corrected, brought back; and how scores moved."""

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from storage.schema import ROW, instruction, response
from storage.store import Store, StoreError

_ROW = {"id": pl.String, "prompt": pl.String, "before": pl.String, "after": pl.String, "why": pl.String}


@dataclass(frozen=True, slots=True)
class Diff:
    by: str
    """`id`; or `content` where no id is in both: an id holds the name under which its row was imported."""

    counts: Mapping[str, int]
    reasons: Mapping[str, int]
    """Of the rows that were live before and are dropped after: how many each step dropped."""

    scores: pl.DataFrame
    """For each column of numbers of both: column, rows, mean before and after, mean size of the moves, rank_kept."""

    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    """Columns that one of the two has alone."""

    rows: Mapping[str, pl.DataFrame]
    """The rows of each kind that is not the same: id, prompt, response before and after, why."""


def diff(store: Store, before: str, after: str) -> Diff:
    """Compare two datasets of rows, or two choices. Raises StoreError for any other two."""
    kinds = {store.manifest(d).kind for d in (before, after)}
    if kinds == {"choice"}:
        old, new = (_taken(store, d) for d in (before, after))
    elif kinds == {"rows"}:
        old, new = (store.read(d).drop("embedding", strict=False) for d in (before, after))
    else:
        raise StoreError(f"{before} and {after} are not of one kind, rows or choice; name two that are")
    by = "id" if old.is_empty() or new.is_empty() or new["id"].is_in(old["id"].implode()).any() else "content"
    if by == "content":
        new = _named_alike(old, new)
    rows = _kinds(old, new)
    same = rows.pop("the same").height
    counts = {"before": _live(old).height, "after": _live(new).height, "the same": same}
    why = rows["dropped"]["why"].str.split(": ").list.first().alias("step").value_counts(sort=True)
    columns = [set(f.columns) - set(ROW.names) for f in (old, new)]
    return Diff(
        by=by,
        counts=counts | {kind: found.height for kind, found in rows.items()},
        reasons=dict(why.iter_rows()),
        scores=_moves(old, new, sorted(columns[0] & columns[1])),
        only_before=tuple(sorted(columns[0] - columns[1])),
        only_after=tuple(sorted(columns[1] - columns[0])),
        rows={kind: found for kind, found in rows.items() if found.height},
    )


def _taken(store: Store, choice: str) -> pl.DataFrame:
    """The rows that were chosen from, those that were not taken marked so."""
    made = store.manifest(choice)
    taken = store.read(choice).select("id", "taken", "why")
    rows = store.read(made.inputs["rows"], list(ROW.names)).join(taken, on="id", maintain_order="left")
    left = pl.format("{}: not taken: {}", pl.lit(made.step), "why")
    return rows.with_columns(drop_reason=pl.when("taken").then(None).otherwise(left)).drop("taken", "why")


def _kinds(old: pl.DataFrame, new: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Every row that is live in one of the two, in one kind each."""
    was, now = _live(old), _live(new)
    fresh = now.join(old, on="id", how="anti")
    corrected = fresh.join(was, left_on="parent_id", right_on="id", how="semi").join(
        now, left_on="parent_id", right_on="id", how="anti"
    )
    gone = was.join(now, on="id", how="anti").join(corrected, left_on="id", right_on="parent_id", how="anti")
    reasons = new.select("id", why="drop_reason")
    before = was.select("id", parent_messages="messages")
    return {
        "added": _shown(fresh.join(corrected, on="id", how="anti"), after="messages"),
        "dropped": _shown(gone.join(reasons, on="id"), before="messages"),
        "gone": _shown(gone.join(new, on="id", how="anti"), before="messages"),
        "corrected": _shown(
            corrected.join(before, left_on="parent_id", right_on="id").with_columns(why=pl.col("method")),
            before="parent_messages",
            after="messages",
        ),
        "brought back": _shown(
            now.join(old.filter(pl.col("drop_reason").is_not_null()).select("id", why="drop_reason"), on="id"),
            after="messages",
        ),
        "the same": now.join(was, on="id", how="semi"),
    }


def _live(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter(pl.col("drop_reason").is_null())


def _shown(rows: pl.DataFrame, before: str = "", after: str = "") -> pl.DataFrame:
    """Id, prompt, response before and after, and why; null where there is none."""
    texts = {"before": before, "after": after}
    said = {what: rows[column].to_list() if column else [None] * rows.height for what, column in texts.items()}
    return pl.DataFrame(
        {
            "id": rows["id"],
            "prompt": [instruction(m) for m in said["after" if after else "before"]],
            **{what: [m and response(m) for m in messages] for what, messages in said.items()},
            "why": rows["why"] if "why" in rows.columns else [None] * rows.height,
        },
        schema=_ROW,
    )


def _named_alike(old: pl.DataFrame, new: pl.DataFrame) -> pl.DataFrame:
    """The new rows under the ids of old ones that say the same, as often as they do.

    One that answers the prompt of an old row otherwise, where that is not there any more, counts as its correction.
    """
    known = _content(old).select("copy", "whole", same="id")
    named = _content(new).join(known, on=["whole", "copy"], how="left", maintain_order="left")
    free = _content(old.join(named, left_on="id", right_on="same", how="anti")).select("ask", corrects="id")
    waiting = _content(new.join(named.filter(pl.col("same").is_null()), on="id", how="semi")).select("id", "ask")
    pairs = waiting.join(free, on="ask").unique("id", keep="first", maintain_order=True)
    pairs = pairs.unique("corrects", keep="first", maintain_order=True).select("id", "corrects")
    return (
        new.with_columns(named["same"])
        .join(pairs, on="id", how="left", maintain_order="left")
        .with_columns(id=pl.coalesce("same", "id"), parent_id=pl.coalesce("corrects", "parent_id"))
        .drop("same", "corrects")
    )


def _content(rows: pl.DataFrame) -> pl.DataFrame:
    """Id, what is asked, what is said in all, and which copy of it this is."""
    said = pl.col("messages").list.eval(pl.element().struct.json_encode())
    found = rows.select("id", whole=said.list.join("\n"), ask=said.list.slice(0, said.list.len() - 1).list.join("\n"))
    return found.with_columns(copy=pl.int_range(pl.len()).over("whole"))


def _moves(old: pl.DataFrame, new: pl.DataFrame, columns: list[str]) -> pl.DataFrame:
    """How each column of numbers moved, on the rows of both that have it in both."""
    lines = []
    for column in columns:
        if not (old.schema[column].is_numeric() and new.schema[column].is_numeric()):
            continue
        both = old.select("id", before=pl.col(column).cast(pl.Float64)).join(
            new.select("id", after=pl.col(column).cast(pl.Float64)), on="id"
        )
        both = both.filter(pl.all_horizontal(pl.col("before", "after").is_finite().fill_null(False)))
        told = both.select(
            pl.len().alias("rows"),
            pl.col("before", "after").mean(),
            moved=(pl.col("after") - pl.col("before")).abs().mean(),
            rank_kept=pl.corr("before", "after", method="spearman"),
        )
        lines.append({"column": column, **told.row(0, named=True)})
    numbers = dict.fromkeys(("before", "after", "moved", "rank_kept"), pl.Float64)
    return pl.DataFrame(lines, schema={"column": pl.String, "rows": pl.Int64, **numbers})
