from pathlib import Path

import numpy as np
import pytest

from flows import page
from flows.answer import answer
from flows.config import ConfigError

ROWS = 600


def right(rng, base, gain=0.0, flips=0.1):
    """Answers of a seed: as `base`, some of them otherwise, and a share `gain` of the wrong ones put right."""
    said = base ^ (rng.random(ROWS) < flips)
    said = said | (rng.random(ROWS) < gain / max(1 - said.mean(), 0.1)) if gain else said
    return "".join("1" if x else "0" for x in said)


def cell(arm, seed, answers, size=700, **more):
    costs = {"seconds": 12.0, "requests": 4000, "generated_tokens": 41000 if arm == "clear" else 0}
    said = {"arm": arm, "size": size, "seed": seed, "failed": None, "taken": size or 2600, "trained_tokens": 9000}
    said |= {"training_seconds": 20.0, "choosing": costs, "choice": f"{arm}-{seed}", "answers": {"right": answers}}
    said |= {"chosen": f"taken-{arm}-{size}-{seed}", "adapter": f"train-{arm}-{size}-{seed}"}
    return said | more


def results(gains, seeds=(0, 1, 2), sizes=(700,), cells=()):
    rng = np.random.default_rng(11)
    base = rng.random(ROWS) < 0.6
    made = [cell(arm, s, right(rng, base, gain), z) for z in sizes for arm, gain in gains.items() for s in seeds]
    return {
        "name": "test",
        "model": "nano",
        "unit": "rows",
        "sizes": list(sizes),
        "baseline": "random",
        "optimizer_steps": 100,
        "seeds": list(seeds),
        "pool": {"rows": 2600, "rejected": 3},
        "heldout": {"rows": ROWS, "digest": "d"},
        "spoilt": None,
        "untuned": {"right": right(rng, base, flips=0.5)},
        "cells": [*made, *cells],
        "overlap": [{"arms": ["random", "clear"], "jaccard": 0.25}],
        "arms": {arm: {"scores and marks": ["clear-score (samples 5)"], "chooses": ["random"]} for arm in gains},
        "steps": {"random": "Take rows uniformly at random."},
        "seconds": {"here": 100.0, "computing": 97.0, "everything": 300.0, "workers": 1},
    }


def by_arm(said):
    return {a["arm"]: a for a in said["arms"]}


def test_a_planted_effect_is_found_and_a_planted_absence_is_not():
    said = answer(results({"random": 0.0, "clear": 0.15, "kmeans": 0.0}))
    arms = by_arm(said)
    assert arms["clear"]["difference"]["holm"] < 0.05 < arms["kmeans"]["difference"]["holm"]
    assert arms["clear"]["sentence"].startswith("clear beats random by 1")
    assert said["verdict"].startswith("Take clear, 700 rows")
    assert "choosing cost 41,000 generated tokens" in arms["clear"]["sentence"]
    assert arms["kmeans"]["sentence"].startswith("no difference between kmeans and random could be shown with 3 seeds")


def test_the_points_of_the_sentence_are_those_of_the_interval():
    arm = by_arm(answer(results({"random": 0.12, "clear": 0.0})))["clear"]
    mean, low, high = (-arm["difference"][k] * 100 for k in ("mean", "high", "low"))
    assert f"is behind random by {mean:.1f} points ({low:.1f} to {high:.1f})" in arm["sentence"]


def test_where_nothing_is_shown_it_says_what_would_show_it():
    said = answer(results({"random": 0.0, "clear": 0.0}, seeds=(0, 1)))
    arm = by_arm(said)["clear"]
    assert f"about {arm['seeds_to_show']} seeds would show 2 points" in arm["sentence"]
    assert f"{arm['seeds_to_show']} seeds would most likely show a difference of 2 points" in said["verdict"]
    assert said["verdict"].startswith("Keep random")


def test_one_seed_says_that_it_is_one():
    arm = by_arm(answer(results({"random": 0.0, "clear": 0.15}, seeds=(0,))))["clear"]
    assert "one seed says nothing about other seeds" in arm["sentence"] and arm["seeds_to_show"] is None


def test_more_comparisons_ask_for_more():
    few = by_arm(answer(results({"random": 0.0, "clear": 0.05})))["clear"]["difference"]
    many = by_arm(answer(results({"random": 0.0, "clear": 0.05, **{f"arm{i}": 0.0 for i in range(9)}})))["clear"]
    assert many["difference"]["holm"] >= 5 * many["difference"]["p"] and few["holm"] == few["p"]
    assert (many["seeds_to_show"] or 999) > by_arm(answer(results({"random": 0.0, "clear": 0.05})))["clear"][
        "seeds_to_show"
    ]


def test_an_arm_that_failed_says_why_and_the_others_stand():
    broken = [{"arm": "loop", "size": 700, "seed": s, "failed": "no <b>model</b>"} for s in (0, 1, 2)]
    found = results({"random": 0.0, "clear": 0.15}, cells=broken)
    arms = by_arm(answer(found))
    assert arms["loop"]["sentence"] == "loop could not be run: no <b>model</b>"
    assert arms["clear"]["difference"]["holm"] < 0.05
    text = page.markdown(found, answer(found))
    assert "| loop | failed |" in text
    assert "no &lt;b&gt;model" in text and "<b>" not in text
    assert "failed" in page.terminal(found, answer(found))


def test_an_arm_that_failed_with_one_seed_is_compared_with_the_others_and_says_so():
    found = results({"random": 0.0, "clear": 0.15})
    found["cells"] = [c for c in found["cells"] if (c["arm"], c["seed"]) != ("clear", 1)]
    found["cells"].append({"arm": "clear", "size": 700, "seed": 1, "failed": "disk full"})
    arm = by_arm(answer(found))["clear"]
    assert (arm["seeds"], arm["difference"]["seeds"]) == ([0, 2], 2)
    assert arm["sentence"].endswith("Failed with seed 1: disk full")
    for c in found["cells"]:
        if c["arm"] == "random" and c["seed"]:
            c["failed"] = "gone"
    arm = by_arm(answer(found))["clear"]
    assert arm["difference"]["seeds"] == 1 and "one seed says nothing about other seeds" in arm["sentence"]


def test_where_random_failed_nothing_is_claimed():
    found = results({"random": 0.0, "clear": 0.15})
    for c in found["cells"]:
        c["failed"] = "no memory" if c["arm"] == "random" else None
    said = answer(found)
    assert said["verdict"].startswith("There is nothing to compare with random")
    assert "Random could not be run: no memory" in page.markdown(found, said)


def test_what_to_take_is_decided_at_the_largest_budget():
    found = results({"random": 0.0, "clear": 0.0}, sizes=(100, 700))
    for c in found["cells"]:
        c["taken"] = c["size"]
    for c in found["cells"]:  # at 100 rows clear is far ahead, at 700 it is not
        share = {("random", 100): 0.3, ("clear", 100): 0.6, ("random", 700): 0.8, ("clear", 700): 0.8}[
            c["arm"], c["size"]
        ]
        c["answers"]["right"] = "".join("1" if (i * 7 + c["seed"]) % ROWS < share * ROWS else "0" for i in range(ROWS))
    said = answer(found)
    assert [a["difference"]["holm"] < 0.05 for a in said["arms"] if a["arm"] == "clear"] == [True, False]
    assert said["verdict"].startswith("Keep random")


def test_another_baseline_is_what_all_are_compared_with():
    found = results({"random": 0.0, "whole": 0.15, "without x": 0.0}) | {"baseline": "whole"}
    said = answer(found)
    assert "difference" not in by_arm(said)["whole"]
    assert by_arm(said)["without x"]["sentence"].startswith("without x is behind whole by")
    assert said["verdict"].startswith("Keep whole")


def test_arms_with_the_same_rows_are_said_to_be_the_same():
    found = results({"random": 0.0, "clear": 0.0})
    for c in found["cells"]:
        c["choice"] = f"same-{c['seed']}"
    assert "chose the same rows as random" in by_arm(answer(found))["clear"]["sentence"]
    assert answer(found)["verdict"] == (
        "There is nothing to compare with random: it failed, or no other arm stands or took other rows."
    )


def test_a_choice_under_its_budget_says_what_it_has():
    found = results({"random": 0.0, "clear": 0.15})
    for c in found["cells"]:
        c["taken"] = 500 if c["arm"] == "clear" else 700
    assert "| clear | 500 of 700 |" in page.markdown(found, answer(found))
    assert "with 500 rows against 700" in by_arm(answer(found))["clear"]["sentence"]


def test_rows_are_worth_the_random_rows_that_do_as_well():
    found = results({"random": 0.0}, sizes=(100, 200, 400))
    for c in found["cells"]:
        share = {100: 0.4, 200: 0.5, 400: 0.6}[c["size"]]
        c["answers"]["right"] = "".join("1" if i < share * ROWS else "0" for i in range(ROWS))
    middle = "".join("1" if i < 0.55 * ROWS else "0" for i in range(ROWS))
    reached = {"clear": middle, "loop": "1" * ROWS}
    found["cells"] += [cell(arm, s, answers, 100) for arm, answers in reached.items() for s in (0, 1, 2)]
    worth = {w["arm"]: w for w in answer(found)["worth"]}
    assert worth["clear"]["random_rows"] == pytest.approx(200 * 2**0.5) and worth["clear"]["bound"] == "about"
    assert (worth["loop"]["random_rows"], worth["loop"]["bound"]) == (400, "more than")
    text = page.markdown(found, answer(found))
    assert "100 rows of clear do on average what about 283 random rows do" in text and text.count("<img") == 2


def test_the_page_says_what_the_best_arm_did_first_and_where_its_rows_are():
    found = results({"random": 0.0, "clear": 0.05, "loop": 0.35}, seeds=(0, 1, 2, 3, 4))
    text = page.markdown(found, answer(found))
    assert text.index("\n- ") == text.index("\n- Loop beats") and text.index("| loop |") < text.index("| clear |")
    assert "- **loop** scores and marks: clear-score (samples 5); chooses: random" in text
    assert "% `taken-loop-700-1` `train-loop-700-1` |" in text and "thresher export" in text
    assert "| &lt;0.001 |" in text and "0.000" not in text and "&gt;99.9%" in text


def test_pages_are_made_again_from_results(tmp_path):
    found = results({"random": 0.0, "clear": 0.15})
    for name in ("page.json", "page.md", "page.html"):
        page.write(tmp_path / name, found)
    assert page.read_results(tmp_path / "page.json") == found
    html = (tmp_path / "page.html").read_text()
    assert html.startswith("<!doctype html>") and html.count("<table>") == 4 and "Take clear" in html
    with pytest.raises(ConfigError, match=r"ends in .md, .html or .json"):
        page.write(tmp_path / "page.txt", found)
    (tmp_path / "page.json").write_text("{}")
    with pytest.raises(ConfigError, match="holds no results"):
        page.read_results(tmp_path / "page.json")
    with pytest.raises(ConfigError, match="there is no file"):
        page.read_results(tmp_path / "nowhere.json")


def test_a_loss_that_was_measured_has_a_curve_of_its_own():
    found = results({"random": 0.0, "clear": 0.1}, sizes=(100, 200))
    assert page.markdown(found, answer(found)).count("<img") == 2
    for c in found["cells"]:
        c["answers"]["loss"] = [1.5 if x == "1" else 2.5 for x in c["answers"]["right"]]
    arm = by_arm(answer(found))["clear"]
    assert arm["loss"]["mean"] == pytest.approx(2.5 - arm["accuracy"]["mean"])
    assert page.markdown(found, answer(found)).count("<img") == 3


@pytest.mark.parametrize("results", sorted((Path(__file__).parents[2] / "docs/evidence").glob("*.json")), ids=str)
def test_the_committed_pages_are_what_the_committed_results_say(results):
    found = page.read_results(results)
    assert page.markdown(found, answer(found)) == results.with_suffix(".md").read_text()


def test_seeds_that_failed_are_not_counted_in_the_verdict():
    found = results({"random": 0.0, "clear": 0.35})
    for c in found["cells"]:
        c["failed"] = "no memory" if c["arm"] == "clear" and c["seed"] else None
    assert answer(found)["verdict"].endswith("with one seed; run three or more.")
