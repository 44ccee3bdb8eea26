"""What runs and comparisons found: files beside the store's datasets, Prefect artifacts, and text for the terminal."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import approval, cards, page, report
from flows.config import LoopConfig
from flows.progress import say
from storage.store import Store


@dataclass(frozen=True, slots=True)
class Published:
    markdown: str
    text: str
    as_json: dict[str, Any]
    path: Path
    url: str


def publish_comparison(results: dict[str, Any], store: Store) -> None:
    """Write `<store>/reports/<name>` as .json, .md and .html, and the artifact `compare-<name>`."""
    folder = store.root / "reports"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{results['name']}{suffix}" for suffix in (".md", ".html", ".json")]
    for path in paths:
        page.write(path, results)
    url = cards.shown(paths[0].read_text(encoding="utf-8"), f"compare-{cards.safe_key(results['name'])}")
    say(f"page: {paths[1]}{f' and {url}' if url else ''}; results: {paths[2]}")


def publish_report(config: LoopConfig, folder: Path, store: Store, runs: list[report.SeedRun]) -> Published:
    """Write `<store>/reports/<name>.md` and the artifact `report-<name>`."""
    spoilt = known_spoilt(folder / config.spoilt) if config.spoilt else None
    rows = store.manifest(runs[0].rounds[-1].choice).counts["taken"]
    said = report.facts(store, runs, rows, spoilt)
    text = report.markdown(
        f"What the curation of {config.name} was worth", said, [*deviations(config), *approval.notes(store, runs)]
    )
    path = store.root / "reports" / f"{config.name}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    url = cards.shown(text, f"report-{cards.safe_key(config.name)}")
    return Published(text, terminal(said), said, path, url)


def deviations(config: LoopConfig) -> list[str]:
    """Where the run differs from the methods' papers by its config, said on the page."""
    students = [role for role, said in config.roles.items() if said.adapter == "last-student"]
    if not students:
        return []
    return [
        f"From the second round on, the {' and the '.join(students)} of CLEAR is the student of the round before; the "
        "paper uses the untuned model throughout. So the AUROC of later rounds is that of a model tuned on this pool.",
        "",
    ]


def known_spoilt(path: Path) -> set[int]:
    """Lines of the pool that are known to be wrong; read here and nowhere else."""
    with path.open(encoding="utf-8") as file:
        return {int(json.loads(line)["line"]) for line in file if line.strip()}


def terminal(said: dict[str, Any]) -> str:
    console = Console(width=110, file=io.StringIO())
    table = Table("arm", "held-out accuracy", "95 % interval", "ahead of random", box=None, title="Held-out accuracy")
    for arm in said["arms"]:
        table.add_row(arm["name"], f"{arm['mean']:.1%}", f"{arm['low']:.1%} to {arm['high']:.1%}", report.ahead(arm))
    console.print(table)
    for run in said["choices"][:1]:
        table = Table("choice", "spoilt rows", "grown rows", "AUROC", "filter precision", "recall", box=None)
        for line in run:
            table.add_row(line["choice"], f"{line['spoilt']:.1%}", str(line["grown"]), *report.filter_cells(line))
        console.print(table)
    console.print("Rows: " + ", ".join(f"{n:,} {what}" for what, n in said["rows"].items()))
    console.print("Seconds: " + ", ".join(f"{stage} {s:,.0f}" for stage, s in said["seconds"].items()))
    console.print(said["sentence"])
    return console.file.getvalue().rstrip()
