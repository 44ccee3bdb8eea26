"""The commands that bring data in and take it out."""

from pathlib import Path
from typing import Annotated

import typer

from flows.command import REJECTED, StoreOption, open_store
from flows.config import ConfigError
from flows.progress import bar, say

in_out = typer.Typer()

_IN = """Bring raw data into the store. What cannot become a row is kept among the rejects, with file, line and reason.

FILES are files, folders, zip archives, addresses that fsspec knows (s3://bucket/raw.parquet), folders that
`Dataset.save_to_disk` wrote, or data sets of the Hugging Face Hub (hf:NAME, hf:NAME:CONFIG@SPLIT).

Formats: alpaca, sharegpt, messages, prompt-completion, preference, kto, oasst, text (passages of text or Markdown); in
JSON lines, JSON, CSV, Parquet or Arrow; packed with gzip, bzip2, xz, zstd or zip. docs/formats.md shows a row of each.
"""
_OUT = """Write the rows of a dataset for other tools: a file, or for a trainer or hf a folder with settings.

Files: alpaca, sharegpt, messages, prompt-completion, preference, kto, oasst or text, written as the name of PATH ends
(.jsonl, .json, .csv, .parquet, .arrow; .gz, .bz2, .xz and .zst pack it).
Folders: trl, axolotl, llama-factory and ms-swift have the data and the settings that read it; hf can be loaded with
`datasets.load_dataset` and has a dataset card. docs/formats.md says what each format cannot hold.
"""


@in_out.command("import", help=_IN)
def import_(
    files: Annotated[list[str], typer.Argument(help="Files, folders, addresses or hf:NAME.")],
    name: Annotated[str, typer.Option(help="Name for the dataset.")],
    format: Annotated[str, typer.Option(help="auto recognises it and says so; or one of the formats above.")] = "auto",
    column: Annotated[
        list[str], typer.Option(help="FIELD=YOURS: which of your columns is a field, such as instruction=question.")
    ] = [],  # noqa: B006
    max_chars: Annotated[
        int, typer.Option(help="A row of more characters, over all its messages, is a reject.", min=1)
    ] = 32_768,
    store: StoreOption = Path(".thresher"),
) -> None:
    from flows.events import tell_imported
    from storage.importing import import_files

    if stray := [c for c in column if "=" not in c.strip("=")]:
        raise ConfigError(f"--column takes FIELD=YOURS, not {stray[0]!r}, such as --column instruction=question")
    columns = {field: yours for field, _, yours in (c.partition("=") for c in column)}
    place = open_store(store)
    before = place.names().get(name)
    with bar(f"import {name}") as progress:
        found = import_files(place, files, name, format, max_chars, columns, progress)
    took = [f"{file} as {said} ({found.kinds[file]})" for file, said in found.formats.items()]
    more = f" and {len(took) - 5:,} more files" if len(took) > 5 else ""
    say(f"{name}: {found.rows:,} rows, {found.rejected:,} rejected; took {', '.join(took[:5])}{more} ({found.dataset})")
    for note, times in sorted(found.notes.items(), key=lambda n: -n[1])[:5]:
        say(f"{times:,} rows: {note}")
    if found.dropped:
        say(f"{found.dropped:,} rows are dropped from the start: the data calls them rejected or unwanted")
    if found.left_out:
        say(f"left out, as no data: {', '.join(found.left_out[:5])}{' …' if len(found.left_out) > 5 else ''}")
    if found.dataset != before:
        tell_imported(place.root, name, found.dataset)  # what `thresher schedule --on-import` waits for
    if found.rejected:
        say(f"`thresher show {name} --rejects` lists them")
        raise typer.Exit(REJECTED)


@in_out.command(help=_OUT)
def export(
    dataset: Annotated[str, typer.Argument(help="Name or id of the dataset.")],
    path: Annotated[Path, typer.Argument(help="File or folder to write.")],
    format: Annotated[str, typer.Option(help="One of those above.")] = "messages",
    own: Annotated[
        bool, typer.Option("--own/--no-own", help="With the other columns that the imported records had.")
    ] = True,
    push_to_hub: Annotated[
        str,
        typer.Option("--push-to-hub", help="With hf: also push the folder to this data set, USER/NAME, as private."),
    ] = "",
    public: Annotated[
        bool, typer.Option("--public", help="With --push-to-hub: to a data set that everybody can read.")
    ] = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    from storage.exporting import FOLDERS, export_folder, export_rows

    place = open_store(store)
    if push_to_hub and format != "hf":
        raise ConfigError("--push-to-hub takes --format hf")
    if public and not push_to_hub:
        raise ConfigError("--public takes --push-to-hub USER/NAME")
    if format in FOLDERS:
        written = export_folder(place, dataset, path, format)
    else:
        written = export_rows(place, dataset, path, format, own=own)
    say(f"{written.rows:,} rows written to {path} as {format}")
    for what, times in written.lost.items():
        say(f"{times:,} rows: {what}")
    if written.read_with:
        say(f"read it with: {written.read_with}")
    if push_to_hub:
        from storage.hub import push

        say(f"pushed to {push(path, push_to_hub, public)}")
