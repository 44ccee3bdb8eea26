"""`thresher schedule`: run a loop at set times or when its data comes in."""

import json
import re
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.browse import out
from flows.command import AsJson, StoreOption, open_store
from flows.config import ConfigError, load
from flows.progress import say
from storage.store import Store, StoreError, check_name

if TYPE_CHECKING:  # Prefect takes seconds to load
    from flows.deployments import Schedule

scheduling = typer.Typer()

_HELP = """Run a loop at set times, or whenever its data is imported; and run what is scheduled.

thresher schedule loop.yaml --cron "0 3 * * *" makes all that it takes on the Prefect server (the store's own if none is
configured): the work pool, a deployment of the loop, its schedule. The file is read anew for every run, and a run pays
only for what is new. Something has to run it at that time: `thresher schedule --serve`, or `thresher ui`.
"""


@scheduling.command(help=_HELP)
def schedule(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run, such as examples/snips/loop.yaml.")] = None,
    cron: Annotated[
        str | None,
        typer.Option(help='When: "0 3 * * *" is every night at three. A sixth field, after these, is seconds.'),
    ] = None,
    every: Annotated[str | None, typer.Option(help="How often, in the place of --cron: 30m, 6h, 2d.")] = None,
    timezone: Annotated[
        str | None, typer.Option(help="Time zone that --cron is in, such as Europe/Berlin; UTC if not given.")
    ] = None,
    on_import: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Run when `thresher import --name DATASET` brings new data."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the schedule; the config's name if not given.")] = None,
    set_: Annotated[list[str], typer.Option("--set", help="key=value, with dots: budget.rounds=2")] = [],  # noqa: B006
    all_steps: Annotated[
        bool, typer.Option("--all-steps", help="A form in the UI for every step; `thresher ui` makes them too.")
    ] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Run what is scheduled, until Ctrl-C.")] = False,
    at_once: Annotated[
        int | None, typer.Option(min=1, help="Runs at once; one for each GPU at first. The GPUs are shared out.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="What is scheduled, and when it runs next.")] = False,
    remove: Annotated[str | None, typer.Option(metavar="NAME", help="End a schedule.")] = None,
    as_json: AsJson = False,
    store: StoreOption = Path(".thresher"),
) -> None:
    times = when(cron, every, timezone)
    if times and on_import:
        raise ConfigError("--on-import starts the loop instead of a time; give one of them, and the other as --name B")
    if (times or on_import or set_ or name) and not config:
        raise ConfigError("name the config that is to be run, such as `thresher schedule loop.yaml --cron '0 3 * * *'`")
    if config and not (times or on_import):
        raise ConfigError(f"when is {config} to run? give --cron, --every or --on-import")
    if not (config or all_steps or serve or list_ or remove):
        raise ConfigError("nothing to do: give a config and --cron, or --serve, --list, --all-steps or --remove NAME")
    wanted = load(config, set_) if config else None
    called = name if name is not None or wanted is None else wanted.name
    for one in (called, on_import):
        if one is not None:
            check_name(one)
    place = open_store(store)
    from flows import deployments
    from flows.server import serving

    at = deployments.schedule_of(times)  # before a server is started, and before anything there is changed
    with serving(place.root) as server:
        if remove:
            deployments.remove(remove)
            say(f"{remove} is not scheduled any more; its earlier runs and what they made stay")
        if wanted or all_steps or serve:
            deployments.ensure_pool(at_once)
            _watch(server.own)
        if wanted:
            _make(called, config, set_, at, on_import, place)
        if all_steps:
            say(f"{deployments.deploy_steps(place.root)} forms made or renewed: {server.url}/deployments")
        if list_:
            _list(as_json)
        if serve:
            _serve(server.url, at_once, place)
        elif wanted:
            say("now run it at its time: `thresher schedule --serve`, or `thresher ui`, for as long as they run")


def when(cron: str | None, every: str | None, timezone: str | None) -> dict[str, Any] | None:
    """Fields of Prefect's schedule; ConfigError names what is wrong with them."""
    if cron and every:
        raise ConfigError("--cron and --every are two ways to say when; give one")
    if timezone and not cron:
        raise ConfigError("--timezone is of --cron")
    if every:
        found = re.fullmatch(r"(\d+)\s*([smhd])", every.strip())
        if not found or not int(found[1]):
            raise ConfigError(f"--every takes a number and s, m, h or d, such as 30m, not {every!r}")
        unit = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}[found[2]]
        return {"interval": timedelta(**{unit: int(found[1])})}
    return {"cron": cron, "timezone": timezone or "UTC"} if cron else None


def _make(
    name: str, config: Path, changes: list[str], times: "Schedule | None", on_import: str | None, store: Store
) -> None:
    from flows import automations, deployments

    made = deployments.deploy_loop(name, config, changes, store.root, times)
    if on_import:
        automations.start_on_import(made, name, on_import, store.root)
    else:
        automations.forget(name)
    soon = deployments.next_runs(made)
    at = f"next at {soon[0]:%Y-%m-%d %H:%M %Z}" if soon else f"runs when {on_import} is imported"
    say(f"{name}: {at}; {deployments.page(made)}")


def _watch(own: bool) -> None:
    from flows import automations

    automations.mark_the_lost(everything=own)


def _list(as_json: bool) -> None:
    from flows import automations, deployments

    found, starters = deployments.deployed(), automations.starters()
    loops = [d for d in found if d.flow == "improve" and "config" in d.parameters]
    if as_json:
        said = [
            {"name": d.name, "config": d.parameters["config"], "schedules": d.schedules, "paused": d.paused}
            | {"on_import": starters.get(d.name), "next": [t.isoformat() for t in deployments.next_runs(d.id)[:1]]}
            for d in loops
        ]
        return typer.echo(json.dumps(said, indent=1))
    table = Table("name", "when", "next", "config", "", box=None)
    for one in loops:
        soon = deployments.next_runs(one.id)
        times = [*one.schedules, *([f"import of {starters[one.name]}"] if one.name in starters else [])]
        wrong = [] if Path(one.parameters["config"]).is_file() else ["its config is gone"]
        wrong += [] if one.pool else ["its work pool is gone: `thresher schedule --serve` makes it again"]
        wrong += ["paused"] if one.paused else []
        next_ = f"{soon[0]:%Y-%m-%d %H:%M %Z}" if soon else ""
        table.add_row(one.name, ", ".join(times), next_, one.parameters["config"], ", ".join(wrong))
    out(table)
    say(f"{len(loops)} scheduled; {len(found) - len(loops)} forms for single steps")


def _serve(url: str, at_once: int | None, store: Store) -> None:
    from flows.serve import until_ended, workers

    with workers(store.root, at_once) as look:
        say(f"running what is scheduled; see {url}/runs. Ctrl-C stops, and what is cut short goes on the next time")
        until_ended(look)
    say("Stopped.")


@scheduling.command()
def approve(
    run: Annotated[str | None, typer.Argument(help="Id of the run, or its beginning; needed if several wait.")] = None,
    yes: Annotated[bool | None, typer.Option("--yes/--no", help="Train on the corrected rows, or mark them.")] = None,
    note: Annotated[str, typer.Option(help="Why; it stands in the reason of refused rows.")] = "",
    store: StoreOption = Path(".thresher"),
) -> None:
    """Answer a run that waits for a person (`approve: true` in its config); without --yes or --no, list them."""
    from flows.server import serving

    with serving(open_store(store).root):
        from flows import approval
        from flows.cards import page_url

        waiting = approval.waiting()
        if yes is None:
            for one in waiting:
                typer.echo(f"{one['id']}  {one['name']}  {page_url('runs/flow-run/' + one['id'])}")
            return say(f"{len(waiting)} runs wait; `thresher approve ID --yes` or --no answers one")
        meant = [one for one in waiting if one["id"].startswith(run or "")]
        if len(meant) != 1:
            raise StoreError(f"{len(meant)} waiting runs are meant; `thresher approve` lists them with their ids")
        approval.answer(meant[0]["id"], yes, note)
    say("approved" if yes else "refused: its rows are marked, and no model is trained on them")
