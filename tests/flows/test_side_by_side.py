"""Cells in processes of their own, on a real server: what one of them does to the others."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from flows.cells import through
from flows.compare import Cell, every_cell
from flows.compare_config import load_comparison
from flows.server import serving

EXAMPLE = Path(__file__).parents[2] / "examples/clinc15/compare.yaml"


class Odd(Exception):
    """Cannot be sent from one process to another."""

    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


def stage(cell: Cell) -> Cell:
    if cell.arm == "longest":
        os.kill(os.getpid(), signal.SIGKILL)
    if cell.arm == "kmeans":
        raise Odd(1, 2)
    return replace(cell, tested=f"{cell.arm} on {os.environ.get('CUDA_VISIBLE_DEVICES')}")


@pytest.mark.real
@pytest.mark.timeout(600)
def test_a_process_that_dies_costs_its_own_cell_and_an_error_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    cells = [c for c in every_cell(load_comparison(EXAMPLE, [])) if c.arm in ("random", "longest", "kmeans", "clear")]
    cells = [c for c in cells if c.seed == 0]
    with serving(tmp_path):
        after = {c.arm: c for c in through(cells, "tested", stage, workers=2)}
    assert list(after) == [c.arm for c in cells] and len(after) == 4
    assert {arm: c.tested for arm, c in after.items() if c.tested} == {"random": "random on 7", "clear": "clear on 7"}
    assert "ended from outside" in after["longest"].failed and after["kmeans"].failed == "Odd: 1 and 2"
