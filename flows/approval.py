"""A person's word on corrected rows before a model is trained on them, asked in the UI; see `approve:` in a config.

The word is a dataset of the store, `approval-…`, of the corrections it is about. So it is asked for once, whatever
becomes of the run that asked; where it is no, the dataset has the refused rows with their reason, and their parents as
they were.
"""

import uuid
from collections.abc import Callable

import polars as pl
from pydantic import Field

from flows import cards, report
from flows.card import text
from flows.engines import release
from flows.progress import say
from flows.recording import recording
from flows.run import with_counts
from storage.schema import prompt, response
from storage.store import Manifest, Shard, Store, StoreError, key_of

WAIT_SECONDS = 14 * 24 * 3600
ASKED = "thresher-approval"  # in the key of the pause: by it our questions are told from other pauses of the server
SHOWN = 8  # samples in the form
REFUSED = "approval: refused by a person"

Ask = Callable[[Store, str, pl.DataFrame], tuple[bool, str]]  # yes or no, and why


def ask(store: Store, corrected: str, new: pl.DataFrame) -> tuple[bool, str]:
    """Pause the flow run until somebody resumes it with an answer; StoreError where nobody does in `WAIT_SECONDS`.

    The process of the run waits, and its worker has no place for another run meanwhile.
    """
    if not recording():
        raise StoreError(
            "`approve: true` asks a person in the UI, and this run is recorded nowhere; start a server for it, or run "
            "it with --set approve=false"
        )
    from prefect.exceptions import FlowPauseTimeout
    from prefect.flow_runs import pause_flow_run
    from prefect.input import RunInput
    from prefect.runtime import flow_run

    class Approval(RunInput):
        approve: bool = Field(True, description="Yes: train on these rows. No: they are marked as refused.")
        note: str = Field("", description="Why; it stands in the reason of refused rows.", max_length=200)

    release()  # a person may take days, and needs no model meanwhile
    card = cards.publish(store, corrected)
    page = cards.page_url(f"runs/flow-run/{flow_run.id}")
    say(
        f"{new.height} corrected rows wait for your word: `thresher approve --yes` or --no, or {page}, its menu, Resume"
    )
    form = Approval.with_initial_data(description=_told(store, corrected, new, card))
    # A key of its own: one that this run had before it was killed would count as answered.
    key = f"{ASKED}-{uuid.uuid4().hex}"
    try:
        word = pause_flow_run(wait_for_input=form, timeout=WAIT_SECONDS, poll_interval=2, key=key)
    except FlowPauseTimeout as why:
        waited = f"nobody answered for the {new.height} corrected rows within {WAIT_SECONDS // 86400} days"
        raise StoreError(f"{waited}; run it again to be asked again, or with --set approve=false") from why
    except RuntimeError as why:
        raise StoreError(
            f"the run could not be paused to ask: {why}; run it again, or with --set approve=false"
        ) from why
    return word.approve, word.note


def _told(store: Store, corrected: str, new: pl.DataFrame, card: str) -> str:
    """How many rows, and some of them beside what they stand for."""
    parents = store.read(corrected, ["id", "messages"]).select(parent_id="id", parent="messages")
    some = new.sort("id").head(SHOWN).join(parents, on="parent_id", how="left", maintain_order="left")
    out = [f"**{new.height} corrected rows.** All of them are on [the card of the dataset]({card}).", ""]
    out += ["<table><thead><tr><th>asked</th><th>was</th><th>corrected to</th></tr></thead><tbody>"]
    for messages, parent in some.select("messages", "parent").iter_rows():
        asked = "\n".join(m["content"] for m in prompt(messages))
        said = (asked, response(parent), response(messages))
        out.append("<tr>" + "".join(f"<td>{text(cell, 300)}</td>" for cell in said) + "</tr>")
    return "\n".join([*out, "</tbody></table>"])


def approved(store: Store, corrected: str, before: str, name: str, ask: Ask = ask) -> str:
    """The corrected rows where a person approves of them, else the rows from before; asks whoever looks at the UI.

    `name` is what the word is kept under. Rows that nobody corrected are not asked about.
    """
    new = store.read(corrected).join(store.read(before, ["id"]), on="id", how="anti")
    if not new.height:
        return corrected
    dataset = f"approval-{key_of('approval', store.manifest(corrected).digest)[:12]}"
    if not store.exists(dataset):
        yes, note = ask(store, corrected, new)
        made = Manifest(
            id=dataset,
            kind="rows",
            step="approval",
            version=1,
            config={"approve": yes, "note": note, "rows": new.height},
            engines={},
            inputs={"rows": corrected, "before": before},
        )
        shards = list(store.manifest(corrected).shards) if yes else _refused(store, dataset, corrected, before, note)
        store.seal(with_counts(store, made, shards))
    store.name(name, dataset)
    return corrected if store.manifest(dataset).config["approve"] else before


def notes(store: Store, runs: list[report.SeedRun]) -> list[str]:
    """What persons said in these runs, a line of the report each."""
    scored = [round_.scored for run in runs for round_ in run.rounds]
    seen = {made.id for made in report.lineage(store, scored)}
    found = []
    for name, dataset in store.names().items():
        made = store.manifest(dataset)
        if made.step == "approval" and made.inputs["before"] in seen:
            word = "approved of" if made.config["approve"] else "refused"
            why = f" ({made.config['note']})" if made.config["note"] else ""
            found.append(f"A person {word} {made.config['rows']} corrected rows{text(why)}: `thresher show {name}`.")
    return ["## Approvals", "", *[f"- {line}" for line in found], ""] if found else []


def _refused(store: Store, dataset: str, corrected: str, before: str, note: str) -> list[Shard]:
    """The corrections marked with the reason, and their parents as they were; nothing else of them is touched."""
    was = store.read(before, ["id", "drop_reason"]).with_columns(old=True)
    reason = REFUSED + (f", {note}" if note else "")
    shards = []
    for i, shard in enumerate(store.manifest(corrected).shards):
        ids = store.read_shard(shard, ["id"])
        marks = ids.join(was, on="id", how="left", maintain_order="left")
        refused = pl.when(pl.col("old").is_null()).then(pl.lit(reason)).otherwise("drop_reason")
        shards.append((*shard, store.put_part(key_of(dataset, i), marks.select("id", drop_reason=refused))))
    return shards


def waiting() -> list[dict[str, str]]:
    """The runs that wait for a word on corrected rows, and can take it: their id and name."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    found = []
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=paused):
            told = (run.state.state_details.run_input_keyset or {}).get("description", "")
            # What is asked is written a moment after the pause, and before it an answer would be refused.
            if ASKED in told and client.filter_flow_run_input(run.id, told, 1, set()):
                found.append({"id": str(run.id), "name": run.name})
    return found


def answer(run: str, approve: bool, note: str) -> None:
    """Give a waiting run its word; StoreError where it takes none, such as one that was answered meanwhile."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.responses import SetStateStatus

    with get_client(sync_client=True) as client:
        said = client.resume_flow_run(uuid.UUID(run), run_input={"approve": approve, "note": note})
    if said.status != SetStateStatus.ACCEPT:
        raise StoreError(f"run {run} took no answer: {said.details.reason}; `thresher approve` lists those that wait")
