"""Which of many ids were there before: eight bytes for each, however many there are."""

import numpy as np
import polars as pl


class Copies:
    """Counts equal ids over a whole import."""

    def __init__(self) -> None:
        self._runs: list[np.ndarray] = []  # sorted keys of all ids so far; each run is longer than the next
        self._times: dict[int, int] = {}  # of those that came more than once

    def count(self, ids: list[str]) -> np.ndarray:
        """For each id how many equal ones came before it, and remember them all. Ids begin with 16 hex digits."""
        if not ids:
            return np.zeros(0, dtype=np.int64)
        keys = np.frombuffer(bytes.fromhex("".join(i[:16] for i in ids)), dtype=">u8").astype(np.uint64)
        new, where, times = np.unique(keys, return_inverse=True, return_counts=True)
        before = np.zeros(len(new), dtype=bool)
        for run in self._runs:
            before |= run[np.minimum(np.searchsorted(run, new), len(run) - 1)] == new
        earlier = before.astype(np.int64)
        for place in np.flatnonzero(before | (times > 1)):
            key = int(new[place])
            earlier[place] = self._times.get(key, earlier[place])
            self._times[key] = int(earlier[place] + times[place])
        self._add(new[~before])
        if len(new) == len(keys):
            return earlier[where]
        within = pl.DataFrame({"key": where}).select(pl.int_range(pl.len()).over("key")).to_series().to_numpy()
        return within + earlier[where]

    def _add(self, keys: np.ndarray) -> None:
        self._runs.append(keys)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]))]
        self._runs = [run for run in self._runs if len(run)]
