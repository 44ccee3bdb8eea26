import numpy as np
import pytest

from curation.rule_fit import Observations, fit, interval, regress
from curation.step import StepError

NAMES = ("perplexity", "mtld", "knn6", "reward")
TRUE = np.array([0.8, 0.0, -0.4, 0.3])
BOUNDS = dict.fromkeys((*NAMES, "output_length"), (-9.0, 9.0))


def observed(n=129, noise=0.01, seed=0, kinds=None, means=None):
    rng = np.random.default_rng(seed)
    means = rng.standard_normal((n, 4)) if means is None else means
    kind = np.zeros(n, int) if kinds is None else kinds
    return Observations(NAMES, means, 0.5 + 2.0 * kind + means @ TRUE + noise * rng.standard_normal(n), kind)


def test_coefficients_are_recovered_within_three_standard_errors():
    found = regress(observed())
    assert (np.abs(found.coefficients - TRUE) < 3 * found.errors).all()
    assert found.r2 > 0.9 and found.leave_one_out_r2 > 0.9 and found.intercept == pytest.approx(0.5, abs=0.01)


def test_numbers_are_those_of_statsmodels():
    import statsmodels.api as sm
    from statsmodels.stats.outliers_influence import variance_inflation_factor

    rng = np.random.default_rng(1)
    means = rng.standard_normal((40, 4)) * [1, 20, 0.1, 3] + [5, 50, 0.7, -1]
    means[:, 1] += 15 * means[:, 0]
    given = observed(40, 0.5, 2, means=means)
    found, theirs = regress(given), sm.OLS(given.loss, sm.add_constant(means)).fit()
    assert found.coefficients == pytest.approx(theirs.params[1:]) and found.intercept == pytest.approx(theirs.params[0])
    assert found.errors == pytest.approx(theirs.bse[1:]) and found.r2 == pytest.approx(theirs.rsquared)
    assert found.inflation == pytest.approx([variance_inflation_factor(sm.add_constant(means), i) for i in range(1, 5)])
    left = [sm.OLS(np.delete(given.loss, i), sm.add_constant(np.delete(means, i, 0))).fit() for i in range(40)]
    missed = [given.loss[i] - left[i].params @ [1, *means[i]] for i in range(40)]
    bare = [given.loss[i] - np.delete(given.loss, i).mean() for i in range(40)]
    assert found.leave_one_out_r2 == pytest.approx(1 - np.sum(np.square(missed)) / np.sum(np.square(bare)))


def test_what_tells_nothing_is_left_out_with_a_reason_and_the_rule_passes():
    found = fit(observed(), observed(20, 0.3, seed=3), BOUNDS)
    assert set(found.terms) >= {"perplexity", "knn6", "reward"}
    assert found.passes and found.spearman > 0.8 and 0.5 < found.low < found.spearman < found.high < 1
    term = found.terms["perplexity"]
    assert term.coefficient == pytest.approx(0.8, abs=0.01) and (term.low, term.high) == (-9, 9)
    assert term.alone > 0.7 and term.inflation < 1.2
    rng = np.random.default_rng(4)
    means = rng.standard_normal((60, 4))
    means[:, 1], means[:, 3] = 7.0, means[:, 0] * 2 + 1e-6 * rng.standard_normal(60)
    found = fit(observed(60, means=means), observed(20, seed=5), BOUNDS)
    assert found.left_out["mtld"] == "is the same in every subset"
    assert {"reward", "perplexity"} & {n for n, why in found.left_out.items() if "the others tell it" in why}


def test_losses_that_are_chance_make_no_rule():
    rng = np.random.default_rng(0)
    passed = 0
    for _ in range(40):
        some = [
            Observations(NAMES, rng.standard_normal((n, 4)), rng.standard_normal(n), np.zeros(n, int)) for n in (45, 15)
        ]
        passed += fit(*some, BOUNDS).passes
    assert passed < 12  # one in seven has a correlation over 0.3 by chance, and some have no term at all


def test_trainings_of_another_kind_help_by_what_they_differ_in():
    kinds = np.repeat([0, 1, 2], [12, 30, 2])
    found = fit(observed(44, kinds=kinds), observed(8, seed=6), BOUNDS)
    assert (found.fitted, found.own) == (42, 12)  # two of a kind tell nothing
    assert found.regression.intercept == pytest.approx(0.5, abs=0.05)
    assert found.terms["perplexity"].coefficient == pytest.approx(0.8, abs=0.02)
    alone = fit(observed(44, 0.2, kinds=kinds).where(kinds == 0), observed(8, seed=6), BOUNDS)
    both = fit(observed(44, 0.2, kinds=kinds), observed(8, seed=6), BOUNDS)
    assert both.terms["perplexity"].error < alone.terms["perplexity"].error


def test_a_perfect_correlation_of_four_subsets_says_little_and_of_a_hundred_much():
    low, high = interval(1.0, 4)
    assert low < 0 and high == 1
    assert interval(1.0, 100)[0] > 0.99 and interval(-1.0, 4)[1] > 0 and interval(0.5, 3) == (-1, 1)
    assert interval(0.5, 30) == pytest.approx((0.150, 0.739), abs=0.005)  # atanh 0.5 ± 1.96 * sqrt(1.125 / 27)


def test_too_few_subsets_say_how_many_it_takes():
    with pytest.raises(StepError, match="ask for 67 subsets, or for fewer indicators"):
        fit(observed(6), observed(4), BOUNDS)
    with pytest.raises(StepError, match="0 kept apart"):
        fit(observed(50), observed(0), BOUNDS)
