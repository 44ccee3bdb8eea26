import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from flows import statistics as st


def drawn(rng, seeds, rows, mean=0.0, by_seed=0.0, by_row=0.0, rest=0.0):
    """A matrix of the model that the intervals assume, with known spreads."""
    return (
        mean
        + by_seed * rng.standard_normal((seeds, 1))
        + by_row * rng.standard_normal((1, rows))
        + rest * rng.standard_normal((seeds, rows))
    )


def told(found):
    return found.mean, found.low, found.high, found.p


def by_scipy(values):
    test = scipy_stats.ttest_1samp(values, 0)
    return values.mean(), *test.confidence_interval(0.95), test.pvalue


def test_one_seed_is_the_paired_t_test_over_rows():
    values = np.random.default_rng(0).integers(-1, 2, 300).astype(float) + 0.1
    assert told(st.estimate(values[None, :])) == pytest.approx(by_scipy(values))


def test_rows_that_are_all_alike_leave_the_t_test_over_seeds():
    means = np.array([0.05, 0.08, 0.02, 0.06])
    assert told(st.estimate(np.tile(means[:, None], 50))) == pytest.approx(by_scipy(means))


def test_mean_squares_of_a_worked_example():
    found = st.spread(np.array([[3.0, 1.0], [1.0, 0.0]]))  # means 2 and .5 both ways, each rest .25 or -.25
    assert (found.seeds, found.rows, found.rest) == pytest.approx((2.25, 2.25, 0.25))
    error, df = found.error()
    assert error == pytest.approx(np.sqrt((2.25 + 2.25 - 0.25) / 4))
    assert df == pytest.approx(4.25**2 / (2.25**2 + 2.25**2 + 0.25**2))


@pytest.mark.parametrize(
    ("by_seed", "by_row", "rest"),
    [
        pytest.param(0.03, 0.3, 0.4, id="as on SNIPS"),
        pytest.param(0.05, 0.0, 0.1, id="seeds differ most"),
        pytest.param(0.0, 0.4, 0.3, id="rows differ most"),
    ],
)
def test_intervals_of_three_seeds_cover_what_they_say(by_seed, by_row, rest):
    rng = np.random.default_rng(1)
    found = [st.estimate(drawn(rng, 3, 200, 0.04, by_seed, by_row, rest)) for _ in range(800)]
    covered = np.mean([e.low <= 0.04 <= e.high for e in found])
    assert 0.925 <= covered <= 0.985


def test_a_planted_effect_is_found_and_a_planted_absence_is_not():
    rng = np.random.default_rng(2)
    spreads = {"by_seed": 0.01, "by_row": 0.3, "rest": 0.3}
    there = [st.estimate(drawn(rng, 3, 700, 0.06, **spreads)) for _ in range(200)]
    absent = [st.estimate(drawn(rng, 3, 700, 0.0, **spreads)) for _ in range(400)]
    assert np.mean([e.p < 0.05 for e in there]) > 0.9
    assert np.mean([e.p < 0.05 for e in absent]) < 0.08
    assert np.mean([e.ahead for e in there]) > 0.97 and abs(np.mean([e.ahead for e in absent]) - 0.5) < 0.05


def test_where_nothing_differs_as_many_rows_leave_room_for_others():
    assert told(st.estimate(np.zeros((3, 100)), -1, 1)) == pytest.approx((0, -0.0362, 0.0362, 1), abs=1e-4)
    right = st.estimate(np.ones((1, 10)), 0, 1)
    wanted = scipy_stats.binomtest(10, 10).proportion_ci(0.95, method="exact")
    assert (right.low, right.high) == pytest.approx((wanted.low, wanted.high))
    assert right.p == pytest.approx(scipy_stats.binomtest(10, 10, 0.5).pvalue)
    assert st.estimate(np.full((2, 2), 0.5), -1, 1).p == 0.5  # two rows show nothing, however alike


def test_one_number_tells_nothing_and_a_share_stays_one():
    assert told(st.estimate(np.ones((1, 1)), 0, 1)) == (1, 0, 1, 1)
    found = st.estimate(np.array([[1.0] * 9 + [0.0]]), 0, 1)
    assert (found.mean, found.high) == (0.9, 1.0) and 0.6 < found.low < 0.8


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5], [0.2, 0.2, 0.9], [0.049, 0.001, 0.03, 0.7, 0.02]])
def test_holm_is_that_of_statsmodels(p):
    assert st.holm(p) == pytest.approx(multipletests(p, method="holm")[1])


def test_holm_of_a_worked_example_and_of_nothing():
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert st.holm([]) == []


def test_power_over_seeds_alone_is_that_of_statsmodels():
    found = st.spread(np.tile(np.array([[0.0], [0.02], [0.04]]), 40))  # standard deviation .02
    for seeds, effect in ((3, 0.03), (6, 0.02), (12, 0.02)):
        wanted = TTestPower().power(effect / 0.02, seeds, 0.05)
        assert st.power(found, effect, seeds) == pytest.approx(wanted, abs=1e-6)
    stricter = TTestPower().solve_power(1.0, alpha=0.01, power=0.8)
    assert st.seeds_to_show(found, 0.02, 0.01) == int(np.ceil(stricter))
    assert st.seeds_to_show(found, 0.02) == int(np.ceil(TTestPower().solve_power(1.0, alpha=0.05, power=0.8)))


def test_more_seeds_cannot_show_what_too_few_rows_hide():
    rng = np.random.default_rng(3)
    found = st.spread(drawn(rng, 3, 40, by_seed=0.001, by_row=0.5, rest=0.1))
    assert st.seeds_to_show(found, 0.02) is None


def test_power_is_how_often_the_effect_is_really_shown():
    rng, spreads = np.random.default_rng(4), {"by_seed": 0.02, "by_row": 0.2, "rest": 0.3}
    many = st.spread(drawn(rng, 400, 400, **spreads))  # so many that its mean squares are the true ones
    as_three = st.Spread((3, 400), many.seeds, (many.rows - many.rest) / 400 * 3 + many.rest, many.rest)
    shown = np.mean([st.estimate(drawn(rng, 8, 400, 0.04, **spreads)).p < 0.05 for _ in range(600)])
    assert st.power(as_three, 0.04, 8) == pytest.approx(shown, abs=0.06)
