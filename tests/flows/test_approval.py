"""A person's word on corrected rows, asked by a run in a process of its own and given in the terminal."""

import html
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import polars as pl
import pytest

from curation.privacy import FOUND
from flows import approval
from flows.server import Server, serving
from storage.store import Manifest, Store, StoreError
from tests.flows.stores import corrected_store
from tests.rows import rows

ROOT = Path(__file__).parents[2]
SECONDS = 240  # for what takes ten on a quiet machine
pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]

LOOP = """
import sys
from pathlib import Path
from curation.privacy import FOUND
from flows import approval
from flows.server import serving
served, root = map(Path, sys.argv[1:])
with serving(served):
    from prefect import flow
    from flows.config import LoopConfig, Use
    from flows.loop import Turn
    turn = Turn(LoopConfig(name="tiny", pool="", heldout="", approve=True), root, 0, 1)
    asks = flow(lambda: turn.revise([Use(step="privacy-mask")], "found", None), name="asks")
    print("goes on with", asks(), flush=True)
"""


def masked_store(root: Path) -> Store:
    """`found`: two rows, in one of which stands what privacy-mask takes out."""
    store, mail = Store(root), "ann@example.org"
    frame = rows(("Who is it?", f"Write to {mail}."), ("And now?", "Nobody.")).with_columns(
        privacy_kinds=pl.Series(["EMAIL_ADDRESS", None]),
        privacy_found=pl.Series([[{"kind": "EMAIL_ADDRESS", "text": mail}], []], dtype=FOUND),
    )
    store.seal(Manifest("found", "rows", "test", 1, {}, {}, {}, ((store.put_part("r", frame),),), counts={"rows": 2}))
    return store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("asks")) as server:
        yield server


@pytest.fixture(scope="module")
def terminal(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen]:
    """Starts a process that finds the server of the store `asks` for itself; at the end none of them is left."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")} | {"PYTHONPATH": str(ROOT)}
    started: list[subprocess.Popen] = []

    def start(*words: object) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, *map(str, words)]
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def said_by(process: subprocess.Popen, code: int = 0) -> str:
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == code, said
    return said


def waits(many: int, asking: subprocess.Popen) -> list[dict[str, str]]:
    """The runs that wait, once there are so many; fails as soon as what should ask has ended."""
    end = time.monotonic() + SECONDS
    while len(found := approval.waiting()) < many:
        assert asking.poll() is None, f"it did not ask: {asking.communicate()[0]}"
        assert time.monotonic() < end, f"{len(found)} runs wait after {SECONDS} s, and not {many}"
        time.sleep(0.3)
    return found


def form_of(run: str) -> str:
    """What a paused run tells whoever is to answer."""
    api = os.environ["PREFECT_API_URL"]
    key = httpx.get(f"{api}/flow_runs/{run}").json()["state"]["state_details"]["run_input_keyset"]["description"]
    return html.unescape(httpx.get(f"{api}/flow_runs/{run}/input/{key}").text)


def test_runs_that_are_paused_go_on_with_the_answers_given_in_the_terminal(server, terminal, tmp_path):
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Paused

    root = served(server)
    with get_client(sync_client=True) as client:  # what somebody else's run waits for is not asked about
        client.create_flow_run(flow(lambda: None, name="another"), state=Paused(timeout_seconds=900))
    refused, kept = masked_store(tmp_path / "refused"), masked_store(tmp_path / "kept")
    first = terminal("-c", LOOP, root, refused.root)
    (asked,) = waits(1, first)
    form = form_of(asked["id"])
    assert "1 corrected rows" in form and "| " not in form
    shown = ("<td>Who is it?</td>", "Write to ann@example.org.", "Write to <EMAIL_ADDRESS>.", "/artifacts/artifact/")
    assert all(said in form for said in shown), form
    second = terminal("-c", LOOP, root, kept.root)
    (other,) = [one for one in waits(2, second) if one != asked]

    approve = ("-m", "flows.cli", "approve", "--store", root)
    which = said_by(terminal(*approve, "--yes"), code=1)
    assert "2 waiting runs are meant" in which
    told = terminal(*approve, asked["id"][:13], "--no", "--note", "no masks")
    approval.answer(other["id"], True, "")
    assert "refused: its rows are marked" in said_by(told)
    made = said_by(first), said_by(second)

    assert "goes on with found" in made[0], made[0]
    word = refused.resolve("tiny.seed0.round1.corrections-approval")
    assert refused.manifest(word).counts["dropped by approval"] == 1
    reasons = refused.read(word, ["method", "drop_reason"]).filter(pl.col("method") == "privacy-mask")["drop_reason"]
    assert reasons.to_list() == [f"{approval.REFUSED}, no masks"]
    assert refused.read(word, ["id", "drop_reason"]).filter(pl.col("id") == "r0")["drop_reason"].item() is None
    assert "goes on with privacy-mask-" in made[1], made[1]
    assert kept.manifest(kept.resolve("tiny.seed0.round1.corrections-approval")).config["approve"]
    assert approval.waiting() == []
    with pytest.raises(StoreError, match="took no answer"):
        approval.answer(asked["id"], True, "")


def test_a_run_that_nobody_answers_says_so_and_ends(server, tmp_path, monkeypatch):
    from prefect import flow

    store = corrected_store(tmp_path)
    monkeypatch.setattr(approval, "WAIT_SECONDS", 1)
    with pytest.raises(StoreError, match=r"nobody answered for the 2 corrected rows .*approve=false"):
        flow(lambda: approval.approved(store, "corrected", "before", "word"), name="asks")()
    with pytest.raises(StoreError, match="could not be paused to ask"):
        approval.approved(store, "corrected", "before", "word")  # in no run of Prefect's


def served(server: Server) -> Path:
    """The folder of the store whose server it is."""
    return Path(os.environ["PREFECT_HOME"]).parent
