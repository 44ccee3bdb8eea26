"""The curve of a size search: every size with every seed, whatever its shape."""

import random

import pytest

from curation.step import StepError
from flows import steps  # noqa: F401  registers every step
from flows.config import load
from flows.size_search import grid, told
from flows.validation_loss import Training
from storage.schema import ROW
from storage.store import Manifest, Store
from tests.flows.test_loop import ROOT
from tests.rows import rows


def test_sizes_have_even_steps_in_their_logarithm():
    assert grid(50, 800, 5) == [50, 100, 200, 400, 800]
    assert grid(50, 30, 5) == [50] and grid(1, 3, 9) == [1, 2, 3]


def size(store, asked, taken, seed, mean, noise=0.02):
    """A training on so many rows whose loss on 30 validation rows has this mean, with noise of its own."""
    draw = random.Random(f"{asked} {seed}")
    loss = [draw.gauss(0, noise) for _ in range(30)]
    loss = [mean + x - sum(loss) / 30 for x in loss]
    chosen, found = f"chosen-{asked}-{seed}", f"measured-{asked}-{seed}"
    for name, frame in ((chosen, rows(*[("q", "a")] * taken)), (found, rows(*[("q", "a")] * 30, base_nll=loss))):
        part = store.put_part(name, frame, ROW)
        store.seal(Manifest(name, "rows", name.split("-")[0], 1, {}, {}, {}, ((part,),), counts={"live": taken}))
    return Training(f"{asked} rows", asked, seed, chosen, "a", found)


@pytest.mark.parametrize(
    ("noise", "enough"), [pytest.param(0.2, 40, id="inside-noise"), pytest.param(0.001, 160, id="shown")]
)
def test_the_smallest_size_that_is_not_shown_to_be_worse_is_named_whatever_the_curve(tmp_path, noise, enough):
    """Falls, rises and falls again, as the paper reports."""
    store, config = Store(tmp_path), load(ROOT / "examples/snips/loop.yaml", ["seeds=[0,1]"])
    curve = {20: 2.0, 40: 1.0, 80: 1.5, 160: 0.99}
    cells = [size(store, n, n, seed, mean, noise) for n, mean in curve.items() for seed in config.seeds]
    cells.append(Training("320 rows", 320, 0, failed="no memory"))
    said = told(config, store, cells)
    assert said["best"] == 160 and said["enough"] == enough and [p["rows"] for p in said["sizes"]] == list(curve)
    by = {p["rows"]: p for p in said["sizes"]}
    assert by[80]["behind_low"] > 0.3 and by[20]["behind_low"] > 0.8 and abs(by[40]["behind"] - 0.01) < 1e-9
    assert said["failed"] == ["320 rows, seed 0, no memory"]
    with pytest.raises(StepError, match="no size was trained with every seed"):
        told(config, store, cells[-1:])


def test_two_sizes_that_come_to_the_same_rows_are_one_and_no_seed_counts_twice(tmp_path):
    store, config = Store(tmp_path), load(ROOT / "examples/snips/loop.yaml", ["seeds=[0,1]"])
    small = [size(store, 20, 20, seed, 2.0) for seed in (0, 1)]
    twice = [size(store, asked, 30, 0, mean) for asked, mean in ((40, 1.0), (80, 1.0))]
    assert [p["rows"] for p in told(config, store, small + twice)["sizes"]] == [20]  # no second seed of 30 rows
    late = [size(store, 160, 30, seed, 1.0 + seed) for seed in (1, 0)]
    curve = told(config, store, small + twice + late)["sizes"]
    assert [p["rows"] for p in curve] == [20, 30] and curve[1]["loss"] == pytest.approx(1.5)
