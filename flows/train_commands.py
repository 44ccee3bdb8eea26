"""`thresher train` and `thresher prefer`: rows or pairs of rows into an adapter; and what a run would learn."""

import inspect
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
from rich.text import Text

from flows.assemble import taken
from flows.command import StoreOption, open_store
from flows.config import prefer_settings, train_settings
from flows.engines import EngineSpec, model_folder
from flows.models import adapted
from flows.progress import bar, say
from flows.step_commands import options
from storage.store import Store
from training.settings import PreferConfig, TrainConfig

training = typer.Typer()
_SHOWN = 5  # rows of a preview
_MODEL = Annotated[str, typer.Option(help="Base model: nano, a folder or a hub name.")]
_NAME = Annotated[str | None, typer.Option(help="Name for the adapter; DATASET.adapter if not given.")]
_EVERY = Annotated[float, typer.Option(help="Seconds between checkpoints.", min=0)]


def train(
    dataset: str,
    store: Path = Path(".thresher"),
    model: str = "nano",
    name: str | None = None,
    checkpoint_seconds: float = 60.0,
    preview: bool = False,
    **typed: Any,
) -> None:
    from flows.training import summary, train_adapter

    place, config = open_store(store), train_settings(typed)
    rows = _rows(place, dataset)
    if preview:
        return show_preview(place, rows, model, config)
    with bar("train") as progress:
        made = train_adapter(place, rows, EngineSpec(model=model), config, progress, every=checkpoint_seconds)
    _tell(place, made, name or f"{dataset}.adapter", summary)


def prefer(
    dataset: str,
    store: Path = Path(".thresher"),
    model: str = "nano",
    adapter: str | None = None,
    name: str | None = None,
    checkpoint_seconds: float = 60.0,
    **typed: Any,
) -> None:
    from flows.preference import pairs_of, prefer_adapter, summary

    place, config = open_store(store), prefer_settings(typed)
    rows = place.resolve(dataset)
    pairs = rows if place.manifest(rows).step == "pairs" else pairs_of(place, rows)
    start = adapted(place, model, adapter) if adapter else EngineSpec(model=model)
    with bar("prefer") as progress:
        made = prefer_adapter(place, pairs, start, config, progress, every=checkpoint_seconds)
    _tell(place, made, name or f"{dataset}.preferred", summary)


def _tell(place: Store, made: str, name: str, summary: Callable[[dict[str, Any], dict[str, int]], list[str]]) -> None:
    place.name(name, made)
    for line in summary(place.run_facts(made), place.manifest(made).counts):
        say(line)
    say(f"{name}: {place.files(made)}")


def show_preview(place: Store, rows: str, model: str, config: TrainConfig) -> None:
    """The first rows as tokens, the learnt ones coloured, and what holds for all of them; nothing is trained.

    Where the output is no terminal, the learnt tokens stand between ⟦ and ⟧.
    """
    from training.sft import encoded

    live = place.read(rows, ["id", "messages", "drop_reason"]).filter(pl.col("drop_reason").is_null())
    template, found = encoded(model_folder(model), live, config)
    for row in found.encoded[:_SHOWN]:
        typer.echo(f"{row.id}: {len(row.tokens)} tokens, {sum(row.learnt)} learnt" + _cut(row.cut))
        _print_tokens(list(zip(_texts(template.tokenizer, row.tokens), row.learnt, strict=True)))
    tokens, learnt = sum(len(r.tokens) for r in found.encoded), sum(sum(r.learnt) for r in found.encoded)
    typer.echo(
        f"{len(found.encoded):,} rows, {tokens:,} tokens, {learnt:,} learnt ({learnt / tokens:.1%}); "
        f"each row has at least {min(sum(r.learnt) for r in found.encoded)}"
    )
    for how, count in Counter(r.told for r in found.encoded).most_common():
        typer.echo(f"{count:,} rows told by {how}")
    cut = sum(bool(r.cut) for r in found.encoded)
    if cut:
        typer.echo(f"{cut:,} rows lose their earliest turns")
    for row_id, why in list(found.left_out.items())[:_SHOWN]:
        typer.echo(f"left out: {row_id} ({why})")
    if len(found.left_out) > _SHOWN:
        typer.echo(f"left out: {len(found.left_out):,} rows in all")


def _print_tokens(tokens: list[tuple[str, bool]]) -> None:
    if not sys.stdout.isatty():
        text, before = "", False
        for token, said in tokens:
            text += ("⟦" if said and not before else "⟧" if before and not said else "") + token
            before = said
        return typer.echo(text + ("⟧" if before else ""))
    from rich.console import Console

    line = Text()
    for i, (token, said) in enumerate(tokens):
        line.append(token, style=("bold black on green" if i % 2 else "bold black on bright_green") if said else "dim")
    Console().print(line, soft_wrap=True)


def _texts(tokenizer: Any, tokens: list[int]) -> list[str]:
    """What each token adds to the text; a token decoded alone may lose the space before it."""
    upto = [tokenizer.decode(tokens[:i]) for i in range(len(tokens) + 1)]
    return [
        now[len(before) :] if now.startswith(before) else tokenizer.decode([token])
        for before, now, token in zip(upto, upto[1:], tokens, strict=False)
    ]


def _cut(messages: int) -> str:
    return f", without its first {messages} messages" if messages else ""


def _rows(place: Store, dataset: str) -> str:
    rows = place.resolve(dataset)
    chosen = place.manifest(rows)
    return taken(place, chosen.inputs["rows"], rows) if chosen.kind == "choice" else rows


def _command(function: Any, config: type, first: str, help_: str, *more: inspect.Parameter) -> None:
    """A command with the settings of `config` as options, made from them like those of a step."""
    keyword = inspect.Parameter.KEYWORD_ONLY
    about = Annotated[str, typer.Argument(help=first)]
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter("dataset", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=about),
            inspect.Parameter("model", keyword, annotation=_MODEL, default="nano"),
            *options(config),
            *more,
            inspect.Parameter("checkpoint_seconds", keyword, annotation=_EVERY, default=60.0),
            inspect.Parameter("name", keyword, annotation=_NAME, default=None),
            inspect.Parameter("store", keyword, annotation=StoreOption, default=Path(".thresher")),
        ]
    )
    training.command(function.__name__, help=help_)(function)


def _more(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


_command(
    train,
    TrainConfig,
    "Dataset whose live rows are trained on, or a choice.",
    "Train a LoRA or QLoRA adapter, or every weight, on the live rows of a dataset. A run that was killed goes on from "
    "its last checkpoint; docs/training.md explains every number that is printed.",
    _more(
        "preview",
        Annotated[bool, typer.Option("--preview", help="Show the tokens, the learnt ones coloured; train nothing.")],
        False,
    ),
)
_command(
    prefer,
    PreferConfig,
    "Dataset of rows with corrections among them, or of pairs.",
    "Learn to prefer corrected answers to the ones they correct (DPO), starting from an adapter.",
    _more("adapter", Annotated[str | None, typer.Option(help="Adapter to start from: a dataset or a folder.")], None),
)
