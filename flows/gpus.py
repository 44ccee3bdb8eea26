"""The GPUs of this machine: each is one scheduled run of a user's at a time, of whichever worker, server and store.

    python -m flows.gpus COMMAND …

waits until as many GPUs as its worker has are free, takes them, and becomes the command. What is taken is a lock on a
file for each GPU in a folder of the user's, which goes with the process, however that ends. The worker's own are tried
first, and then the others of the machine: which ones a run has does not matter, only that nobody else has them. A GPU
is known by its name in CUDA_VISIBLE_DEVICES; a run that is shown none waits for none.
"""

import contextlib
import fcntl
import os
import socket
import sys
import time
from pathlib import Path

OFFERED = "THRESHER_GPUS"  # in a worker's environment: all that its runs may take, CUDA_VISIBLE_DEVICES being its share
SHARED = "THRESHER_GPUS_SHARED"  # there too, where more runs at once than GPUs were asked for
LOOK_SECONDS = 1


def accelerators() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none on a machine without."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [card for card in shown.split(",") if card not in ("", "-1")]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]  # CUDA counts those that it can see


def shares(cards: list[str], at_once: int) -> list[dict[str, str]]:
    """What the environment of each of so many workers says of GPUs: dealt out in turn; two may have to share one."""
    if not cards:
        return [{}] * at_once
    dealt = [cards[i::at_once] or [cards[i % len(cards)]] for i in range(at_once)]
    said = {OFFERED: ",".join(cards)} | ({SHARED: "1"} if at_once > len(cards) else {})
    return [said | {"CUDA_VISIBLE_DEVICES": ",".join(own)} for own in dealt]


def take(own: list[str], offered: list[str], shared: bool = False) -> list[str]:
    """As many of these as `own` are, locked for as long as this process lives, or what it becomes; [] where too few are
    free. Two that share one do so with each other, and with nobody who does not."""
    taken: dict[str, int] = {}
    with _lock("gate").open("w") as gate:  # one tries at a time: what it gives back at once nobody found taken
        fcntl.flock(gate, fcntl.LOCK_EX)
        for card in dict.fromkeys([*own, *offered]):
            file = os.open(_lock(card), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                taken[card] = file
            except BlockingIOError:
                os.close(file)
            if len(taken) == len(own):
                break
        for file in taken.values():
            if len(taken) < len(own):
                os.close(file)
            else:
                os.set_inheritable(file, True)
                os.truncate(file, 0)
                os.pwrite(file, str(os.getpid()).encode(), 0)
    return list(taken) if len(taken) == len(own) else []


def _lock(card: str) -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "thresher/gpus" / socket.gethostname()
    folder.mkdir(parents=True, exist_ok=True)
    return folder / card.replace("/", "_")  # MIG-GPU-…/1/0


def _holders(cards: list[str]) -> str:
    """The GPUs, each with the process that took it last where that still lives."""
    said = []
    for card in cards:
        holder = ""
        with contextlib.suppress(OSError, ValueError):
            os.kill(int(number := _lock(card).read_text()), 0)
            holder = f" (process {number})"
        said.append(card + holder)
    return ", ".join(said)


def main() -> None:
    own, offered = accelerators(), os.environ.get(OFFERED, "").split(",")
    told = False
    while own and not (mine := take(own, offered, SHARED in os.environ)):
        if not told:
            said = f"waiting for {len(own)} of the GPUs {_holders(offered)}, which other runs have"
            print(said, file=sys.stderr, flush=True)
            told = True
        time.sleep(LOOK_SECONDS)
    if own:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
