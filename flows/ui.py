"""`thresher ui`: the store's datasets in the browser, for as long as somebody looks."""

import signal
import threading
from pathlib import Path

from flows.progress import bar, console
from flows.server import serving
from storage.store import Store
from storage.using import looking


def serve_ui(store: Store | Path, port: int | None = None) -> int:
    """Serve the UI until Ctrl-C (or SIGTERM), with a card for every dataset; returns the exit code."""
    store = store if isinstance(store, Store) else Store(Path(store))
    ended = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ended.set())
    try:
        with serving(store.root, port):
            from flows import cards  # imports Prefect, which reads its address only once it is known

            with looking(), bar("publishing cards") as progress:
                new = cards.publish_missing(store, progress)
            _tell(store, len(new))
            ended.wait()
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
    lines = [("dashboard", cards.page_url("dashboard")), ("all cards", cards.page_url("artifacts")), *named]
    browser = cards.browser_url(store) or "none: the configured server has no /datasets; unset PREFECT_API_URL for it"
    lines.insert(0, ("datasets", browser))
    wide = max(len(what) for what, _ in lines)
    for what, address in lines:
        console.print(f"{what.ljust(wide)}  {address}", markup=False, soft_wrap=True)
    console.print(
        "\nCtrl-C stops." if datasets else "\nThe store is empty; `thresher import` brings data in. Ctrl-C stops."
    )
