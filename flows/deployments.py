"""What the Prefect server is told to run: the work pool, a deployment for every step and for each scheduled loop.

All of it lies in one work pool, whose limit is the one thing that keeps two runs from the same card: a run that finds
it full waits. Deployments carry the tag `thresher`, by which ours are found again.
"""

import asyncio
import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentUpdate, WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.deployments.runner import EntrypointType, RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.server.schemas import schedules as of_server
from prefect.workers.process import ProcessWorker
from pydantic import ValidationError

from curation.step import STEPS
from flows import single, step_flows
from flows.access import ServerError
from flows.cards import page_url
from flows.config import ConfigError
from flows.gpus import accelerators

POOL = "thresher"
TAG = "thresher"
LOOP_FORM = "a loop"  # no config may be called so: a name has no space
Schedule = CronSchedule | IntervalSchedule


@dataclasses.dataclass(frozen=True, slots=True)
class Deployed:
    name: str
    flow: str
    id: str
    schedules: tuple[str, ...]
    parameters: dict[str, Any]
    paused: bool
    pool: str | None


def ensure_pool(at_once: int | None = None) -> int:
    """Make the work pool where it is missing, and give it back deployments that lost it; how many run at once.

    One for each GPU at first, one without; `at_once` changes it.
    """
    with get_client(sync_client=True) as client:
        try:
            limit = client.read_work_pool(POOL).concurrency_limit
            if at_once and at_once != limit:
                client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=at_once))
            limit = at_once or limit
        except ObjectNotFound:
            limit = at_once or max(1, len(accelerators()))
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(
                WorkPoolCreate(name=POOL, type="process", base_job_template=template, concurrency_limit=limit)
            )
        for lost in (d for d in _ours(client) if d.work_pool_name is None):
            client.update_deployment(lost.id, DeploymentUpdate(work_pool_name=POOL))
    return limit or 1


def deploy_steps(root: Path) -> int:
    """A deployment for every step and for chains of them, where it is missing or its form has changed; how many."""
    flows = [(step_flows.flow_of(step), name) for name, step in sorted(STEPS.items())]
    flows += [(single.curate, "curate"), (single.synthesise, "synthesise"), (single.train, "train")]
    wanted = [_form(flow, name, root) for flow, name in [*flows, (single.loop, LOOP_FORM)]]
    with get_client(sync_client=True) as client:
        flow_names = _flow_names(client)
        known = {(flow_names.get(d.flow_id), d.name): d for d in _ours(client)}
        changed = 0
        for form in wanted:
            if (old := known.get((form.flow_name, form.name))) is None:
                form.apply()
            elif (new := _renewed(old, form)) is not None:
                client.update_deployment(old.id, new)
            else:
                continue
            changed += 1
    return changed


def deploy_loop(name: str, config: Path, changes: list[str], root: Path, schedule: Schedule | None) -> str:
    """The deployment of a loop with this config; its id. ServerError where the name is another loop's."""
    given = {"config": str(config.resolve()), "changes": changes, "root": str(root)}
    with get_client(sync_client=True) as client:
        others = [d for d in _loops(client, name) if d.parameters.get("config", given["config"]) != given["config"]]
        if others:
            raise ServerError(
                f"{name} is the schedule of {others[0].parameters['config']}; give another "
                f"--name, or end that one first: thresher schedule --remove {name}"
            )
    made = single.loop.to_deployment(
        name,
        schedules=[schedule] if schedule else [],
        parameters=given,
        tags=[TAG],
        work_pool_name=POOL,
        job_variables={"working_dir": str(Path.cwd())},
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=f"The loop of {given['config']}, read anew for every run.",
    )
    return str(made.apply())


def deployed() -> list[Deployed]:
    """Every deployment of ours."""
    with get_client(sync_client=True) as client:
        flows = _flow_names(client)
        return [
            Deployed(
                d.name,
                flows.get(d.flow_id, "?"),
                str(d.id),
                tuple(_words(s.schedule) for s in d.schedules if s.active),
                d.parameters,
                d.paused,
                d.work_pool_name,
            )
            for d in _ours(client)
        ]


def schedule_of(times: dict[str, Any] | None) -> Schedule | None:
    """Prefect's schedule of these fields; ConfigError with what is wrong with a cron line or a time zone."""
    try:
        return times and (CronSchedule(**times) if "cron" in times else IntervalSchedule(**times))
    except ValidationError as wrong:
        raise ConfigError("; ".join(f"--{e['loc'][0]} {e['input']!r}: {e['msg']}" for e in wrong.errors())) from None


def next_runs(deployment: str) -> list[datetime]:
    """When each of its schedules is next due, the soonest first."""
    with get_client(sync_client=True) as client:
        schedules = [s.schedule for s in client.read_deployment(deployment).schedules if s.active]
    times = []
    for schedule in schedules:
        kind = of_server.CronSchedule if isinstance(schedule, CronSchedule) else of_server.IntervalSchedule
        times += asyncio.run(kind.model_validate(schedule.model_dump()).get_dates(1))
    return sorted(times)


def page(deployment: str) -> str:
    """Address of a deployment in the UI."""
    return page_url(f"deployments/deployment/{deployment}")


def remove(name: str) -> None:
    """Take a loop's deployment away, and the automations that start it; what it ran stays."""
    from flows.automations import forget

    with get_client(sync_client=True) as client:
        found = _loops(client, name)
        if not found:
            raise ServerError(f"nothing is scheduled as {name!r}; `thresher schedule --list` says what is")
        for one in found:
            client.delete_deployment(one.id)
    forget(name)


def _form(flow: Flow[..., Any], name: str, root: Path) -> RunnerDeployment:
    return flow.to_deployment(
        name,
        parameters={"root": str(root)},
        tags=[TAG],
        work_pool_name=POOL,
        job_variables={"working_dir": str(Path.cwd())},
        entrypoint_type=EntrypointType.MODULE_PATH,
        description=(flow.description or "").partition("\n\nArgs:")[0],
    )


def _renewed(old: DeploymentResponse, form: RunnerDeployment) -> DeploymentUpdate | None:
    """What of a form has changed; its schedules, whether it is paused and what else was set by hand are left alone."""
    schema = _schema(form)
    kept = {name: value for name, value in old.parameters.items() if name in schema["properties"]}
    if (old.parameters, old.parameter_openapi_schema) == (kept | form.parameters, schema):
        return None
    return DeploymentUpdate(
        parameters=kept | form.parameters,
        parameter_openapi_schema=schema,
        description=form.description,
        entrypoint=form.entrypoint,
        job_variables=form.job_variables,
    )


def _schema(form: RunnerDeployment) -> dict[str, Any]:
    return form._parameter_openapi_schema.model_dump(exclude_unset=True)


def _flow_names(client: SyncPrefectClient) -> dict[UUID, str]:
    return {flow.id: flow.name for flow in client.read_flows()}


def _loops(client: SyncPrefectClient, name: str) -> list[DeploymentResponse]:
    flows = _flow_names(client)
    return [d for d in _ours(client) if d.name == name and flows.get(d.flow_id) == single.loop.name]


def _ours(client: SyncPrefectClient) -> list[DeploymentResponse]:
    found: list[DeploymentResponse] = []
    wanted = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    while page := client.read_deployments(deployment_filter=wanted, limit=200, offset=len(found)):
        found += page
    return sorted(found, key=lambda d: d.name)


def _words(schedule: Any) -> str:
    if isinstance(schedule, CronSchedule):
        return f"{schedule.cron} ({schedule.timezone or 'UTC'})"
    return f"every {schedule.interval}" if isinstance(schedule, IntervalSchedule) else str(schedule)
