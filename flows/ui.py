"""`thresher ui`: the store's datasets in the browser and forms to run steps by, for as long as somebody looks."""

import signal
from contextlib import nullcontext
from pathlib import Path

from flows.progress import bar, console
from flows.server import serving
from storage.store import Store
from storage.using import looking


def serve_ui(store: Store | Path, port: int | None = None, host: str = "127.0.0.1", auth: bool = False) -> int:
    """Serve the UI until Ctrl-C (or SIGTERM), with a card for every dataset, a form for every step and, on the
    store's own server, a worker that runs what is scheduled or asked for there; returns the exit code."""
    store = store if isinstance(store, Store) else Store(Path(store))
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    try:
        with serving(store.root, port, host, auth) as server:
            from flows import automations, cards, deployments  # Prefect reads its address only once it is known
            from flows.serve import until_ended, workers

            with looking(), bar("publishing cards") as progress:
                new = cards.publish_missing(store, progress)
            _tell(store, len(new))
            if not server.own:
                console.print("`thresher schedule --serve` runs what is scheduled there; this shows it.")
            # On a server of several stores a worker would take the runs of all of them: `schedule --serve` does that.
            with workers(store.root) if server.own else nullcontext(lambda: None) as look:
                automations.mark_the_lost(everything=server.own)
                deployments.deploy_steps(store.root)
                until_ended(look)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    console.print("Stopped.")
    return 0


def _tell(store: Store, new: int) -> None:
    from flows import cards

    datasets, shown = store.ids(), cards.addresses()
    named = [(name, shown[dataset]) for name, dataset in store.names().items() if dataset in shown]
    browser = cards.browser_url(store) or "none: the configured server has no /datasets; unset PREFECT_API_URL for it"
    pages = {"dashboard": "dashboard", "all cards": "artifacts", "run a step": "deployments"}
    lines = [("datasets", browser), *[(what, cards.page_url(page)) for what, page in pages.items()], *named]
    wide = max(len(what) for what, _ in lines)
    for what, address in lines:
        console.print(f"{what.ljust(wide)}  {address}", markup=False, soft_wrap=True)
    console.print(
        "\nCtrl-C stops." if datasets else "\nThe store is empty; `thresher import` brings data in. Ctrl-C stops."
    )
