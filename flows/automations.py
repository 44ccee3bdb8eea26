"""What the Prefect server does by itself: start a loop when its data comes in, and mark runs whose process died."""

import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import EventTrigger, Posture

from flows.deployments import TAG
from flows.events import IMPORTED

LOST_SECONDS = 300  # ten heartbeats; a `within` near one interval would mark runs that live
_LOST = "thresher: runs whose process died are marked"
_SAID = {"description", "trigger", "actions"}  # what makes two automations of a name equal


def start_on_import(deployment: str, name: str, dataset: str, root: Path) -> None:
    """Whenever a dataset is imported under that name, and no other, run the deployment with it as the pool."""
    forget(name, but=_started(name, dataset))
    pool = {"__prefect_kind": "jinja", "template": "{{ event.payload.dataset }}"}
    match = {"prefect.resource.id": f"thresher.dataset.{dataset}", "thresher.store": str(root)}
    _put(
        _started(name, dataset),
        f"Started by `thresher import … --name {dataset}`.",
        EventTrigger(expect={IMPORTED}, match=match, posture=Posture.Reactive, threshold=1),
        RunDeployment(source="selected", deployment_id=uuid.UUID(deployment), parameters={"pool": pool}),
    )


def mark_the_lost(everything: bool, within: float = LOST_SECONDS) -> None:
    """Mark a run as crashed whose process has said nothing for so long: of all runs, or of ours on a shared server.

    It has to be well over the interval of every heartbeat that it hears (`flows.server.HEARTBEAT_SECONDS`).
    """
    beat = "prefect.flow-run.heartbeat"
    trigger = EventTrigger(
        after={beat},
        expect={"prefect.flow-run.*"},
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related={} if everything else {"prefect.resource.id": f"prefect.tag.{TAG}"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=within),
    )
    why = f"its process has said nothing for {within:.0f} s: it was killed, or its machine is gone"
    _put(_LOST, why, trigger, ChangeFlowRunState(name="Crashed", state=StateType.CRASHED, message=why))


def starters() -> dict[str, str]:
    """Name of a loop: the dataset whose import starts it."""
    with get_client(sync_client=True) as client:
        found = client.read_automations()
    told = [a.name.removeprefix("thresher: ").partition(" runs when ") for a in found if " runs when " in a.name]
    return {name: rest.removesuffix(" is imported") for name, _, rest in told}


def forget(name: str, but: str = "") -> None:
    """Take away what starts a loop, but for the automation of that name."""
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            if one.name.startswith(_started(name, "")) and one.name != but:
                client.delete_automation(one.id)


def _started(name: str, dataset: str) -> str:
    return f"thresher: {name} runs when {dataset}{' is imported' if dataset else ''}"


def _put(name: str, description: str, trigger: EventTrigger, action: Any) -> None:
    """Make it, in the place of another of that name. An equal one stays: what it has heard so far would go with it."""
    wanted = AutomationCore(name=name, description=description, trigger=trigger, actions=[action])
    with get_client(sync_client=True) as client:
        there = False
        for old in client.read_automations_by_name(name):
            if not there and old.model_dump(include=_SAID) == wanted.model_dump(include=_SAID):
                there = True
            else:
                client.delete_automation(old.id)
        if not there:
            client.create_automation(wanted)
