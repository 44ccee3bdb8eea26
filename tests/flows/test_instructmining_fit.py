"""Fitting a rule through the command line, on a pool with planted differences, with real server, model and trainer."""

import json
import random
from dataclasses import replace

import polars as pl
import pytest
import yaml

from curation.rule import find_rule
from curation.rule_fit import interval
from curation.split import Split, split
from flows import svg
from flows.compare_config import load_comparison
from flows.config import ConfigError
from flows.engine_settings import Vllm
from flows.engines import EngineSpec, trained_on
from flows.fit_config import load_fit
from flows.instructmining_fit import as_rule, concluded, elsewhere, fit_observed, keep, observed
from flows.rule_page import fit_facts, fit_markdown, fit_text
from flows.rules import rules
from flows.validation_loss import Training
from storage.store import Manifest, Store
from tests.flows.test_loop import ROOT, thresher
from tests.rows import rows

INDICATORS = ["output_length", "perplexity", "mtld"]
SCORE = [{"step": "instructmining-score", "with": {"indicators": INDICATORS}}]
COLOURS = dict(sky="blue", grass="green", blood="red", snow="white", coal="black", lemon="yellow", mouse="grey")


def planted(folder, n=280):
    """Rows that ask for a colour. A third of those for training answers with another colour and a lot of letters."""
    draw = random.Random(0)
    asked = [(i, draw.choice(list(COLOURS))) for i in range(n)]
    pairs = [(f"Case {i}: which colour has the {thing}?", COLOURS[thing]) for i, thing in asked]
    side = split(rows(*pairs), Split(share=0.15))["split"].to_list()
    lines = []
    for i, ((question, answer), where) in enumerate(zip(pairs, side, strict=True)):
        if where == "train" and i % 3 == 0:
            noise = " ".join("".join(draw.choices("bcdfghjklmnpqrstvwxz", k=5)) for _ in range(5))
            answer = f"{draw.choice([c for c in COLOURS.values() if c != answer])} {noise}"
        lines.append(json.dumps({"instruction": question, "output": answer}))
    (folder / "raw.jsonl").write_text("\n".join(lines) + "\n")
    heldout = [
        {"instruction": f"Test {i}: say the colour of the {t}.", "output": c}
        for i, (t, c) in enumerate(COLOURS.items())
    ]
    (folder / "test.jsonl").write_text("\n".join(map(json.dumps, heldout)) + "\n")
    given = {"pool": "raw.jsonl", "heldout": "test.jsonl", "validation": 0.15, "train": {"batch_size": 4}}
    config = {**given, "name": "planted", "score": SCORE, "indicators": INDICATORS}
    (folder / "fit.yaml").write_text(yaml.safe_dump(config | {"subsets": 32, "rows": 24, "optimizer_steps": 8}))
    loop = given | {"name": "ruled", "baselines": False, "budget": {"rows": 40, "rounds": 1, "optimizer_steps": 2}}
    score = [{"step": "instructmining-score", "with": {"rule": "planted"}}]
    loop |= {"score": [*score, {"step": "instructmining-predict", "with": {"rule": "planted"}}]}
    loop |= {"choose": {"step": "instructmining-select"}, "evaluate": {"max_tokens": 4}}
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("planted")
    planted(made)
    return made


def trained(store):
    return {p.parent.name: p.stat().st_mtime_ns for p in store.glob("datasets/train-*/manifest.json")}


@pytest.mark.real
@pytest.mark.timeout(3000)
def test_planted_differences_are_found_and_the_rule_works_by_name_in_another_run(folder):
    store = folder / "store"
    few = thresher("fit-rule", folder / "fit.yaml", "--set", "subsets=16", "--json", store=store)
    assert few.stdout, few.stderr
    before = trained(store)
    assert json.loads(few.stdout)["trainings"] == {"subsets": 16, "of_other_runs": 0, "failed": 0}
    ran = thresher("fit-rule", folder / "fit.yaml", "--json", store=store)
    assert ran.returncode == 0, (ran.stderr, ran.stdout)
    said = json.loads(ran.stdout)
    after = trained(store)
    assert len(before) == 16 and len(after) == 32 and before.items() <= after.items()  # only the new ones were trained
    assert said["spearman"]["mean"] >= 0.3 and said["rule"]["leave_one_out_r2"] > 0.3 and len(said["heldout"]) == 8
    assert max(said["alone"]["output_length"], said["alone"]["perplexity"]) > 0.5  # noise is long, and not foreseen
    kept = Store(store).read(said["observations"])
    assert kept.height == 32 and kept["loss"].null_count() == 0 and kept["rows"].unique().to_list() == [24]
    assert "data:image/svg+xml" in (store / "reports/rule-planted.md").read_text()
    assert "planted (" in thresher("rules", store=store).stdout

    ran = thresher("run", folder / "loop.yaml", store=store)
    assert ran.returncode == 0, ran.stderr
    place = Store(store)
    choice = place.read(place.resolve("ruled.seed0.round1.instructmining-select")).filter("taken")
    answers = place.read(place.resolve("ruled")).join(choice, on="id")["messages"]
    noisy = [len(m[-1]["content"]) > 10 for m in answers.to_list()]
    assert len(noisy) == 40 and sum(noisy) <= 2  # a third of the pool is
    assert place.manifest(place.resolve("ruled.seed0.round1.instructmining-predict")).config["rule"].startswith("{")

    again = thresher("fit-rule", folder / "fit.yaml", "--json", store=store)
    counted = json.loads(again.stdout)["trainings"]
    assert counted == {"subsets": 32, "of_other_runs": 1, "failed": 0}  # the run's training is an observation

    sizes = ("--least", "20", "--most", "80", "--points", "2", "--set", "seeds=[0,1]", "--json")
    ran = thresher("choose-size", folder / "loop.yaml", *sizes, store=store)
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    assert [p["rows"] for p in said["sizes"]] == [20, 80] and said["best"] in (20, 80)
    assert "data:image/svg+xml" in (store / "reports/size-ruled.md").read_text()


class Planted:
    """A store of adapters that were never trained, whose losses follow the noise of their rows."""

    def __init__(self, store: Store) -> None:
        self.store, self.draw = store, random.Random(1)
        split = ["validation" if i < 30 else "train" for i in range(300)]
        self.perplexity = [self.draw.gauss(0, 1) for _ in range(300)]
        mtld = [self.draw.gauss(5, 2) for _ in range(300)]
        self.perplexity[299] = 1e9
        pool = rows(*[(f"q{i}", "a") for i in range(300)], split=split)
        values = {"perplexity": self.perplexity, "mtld": mtld}
        self.pool = pool.with_columns(pl.Series(f"instructmining_{k}", v) for k, v in values.items())
        self.scored = self.sealed("score-1", self.pool)
        self.base = trained_on(EngineSpec())

    def sealed(self, name, frame, kind="rows", **more):
        part = self.store.put_part(name, frame)
        told = {"config": {}, "engines": {}, "inputs": {}, **more}
        return self.store.seal(Manifest(name, kind, name.split("-")[0], 1, **told, shards=((part,),)))

    def training(self, number, ids, steps=8, seed=0, dropped=(), slope=0.5):
        mine = pl.lit("" if number < 48 else "x")  # another run has other ids for the same rows
        taken = self.pool.filter(pl.col("id").is_in(ids)).with_columns(id=mine + pl.col("id"))
        gone = pl.when(pl.col("id").is_in([f"x{i}" for i in dropped])).then(pl.lit("clear-filter: low"))
        taken = taken.with_columns(drop_reason=gone.otherwise("drop_reason"))
        chosen = self.sealed(f"taken-{number}-{seed}", taken)
        mean = sum(min(self.perplexity[int(i[1:])], 3) for i in ids) / len(ids)
        loss = [2.7 ** (0.1 + slope * mean + 0.1 * (steps - 8)) * self.draw.uniform(0.99, 1.01) for _ in range(30)]
        measured = self.pool.head(30).with_columns(base_nll=pl.Series(loss))
        validated = self.sealed(f"perplexity-{number}-{seed}", measured)
        how = {"config": {"optimizer_steps": steps, "seed": seed}, "engines": {"base": self.base}}
        one = self.pool.select("id").head(1)
        adapter = self.sealed(f"train-{number}-{seed}", one, "adapter", inputs={"rows": chosen}, **how)
        return Training("a subset", number if number < 48 else None, seed, chosen, adapter, validated)


@pytest.fixture
def trainings(tmp_path, folder):
    """The store, a fit's config, its own trainings and those of another run."""
    made = Planted(Store(tmp_path))
    config = load_fit(folder / "fit.yaml", ["subsets=48", "indicators=[perplexity, mtld]"])
    order = made.pool["id"][30:].to_list()
    ranked = sorted(order, key=lambda i: made.perplexity[int(i[1:])])
    mine = [made.training(n, made.draw.sample(ranked[n * 4 : n * 4 + 80], 24)) for n in range(48)]
    others = [made.training(n, made.draw.sample(order, 24), steps=20) for n in (50, 51)]
    marked = made.draw.sample(order, 25)  # what was dropped was not trained on, and is not observed
    others.append(made.training(52, marked, steps=20, dropped=marked[:1]))
    return made, config, mine, others


def test_trainings_of_other_runs_on_rows_of_the_pool_become_observations(trainings):
    made, config, mine, others = trainings
    store, scored, order = made.store, made.scored, made.pool["id"][30:].to_list()
    made.training(53, [*made.draw.sample(order, 9), "r3"])  # a validation row: not an observation
    found = list(elsewhere(config, store, scored, mine))
    assert {t.adapter for t in found} == {t.adapter for t in others} and {t.number for t in found} == {None}
    elsewhere_run = config.model_copy(update={"engine": Vllm()})  # where answers come from is nothing to a training
    assert len(list(elsewhere(elsewhere_run, store, scored, mine))) == 3
    again, on = made.training(0, order[:24], seed=7), {"rows": mine[5].chosen}  # 5's rows, as they are
    store.seal(Manifest("train-again", "adapter", "train", 1, {"seed": 9}, {"base": made.base}, on))
    assert "train-again" not in {t.adapter for t in elsewhere(config, store, scored, [*mine, again])}
    assert config.apart(12)
    ids = [i.removeprefix("x") for i in store.read(mine[12].chosen, ["id"])["id"]]
    same = made.training(54, ids, steps=20)  # under other ids, in another dataset, with other settings
    assert same.chosen != mine[12].chosen
    assert same.adapter not in {t.adapter for t in elsewhere(config, store, scored, mine)}
    nearly = made.training(55, [*ids[:23], next(i for i in order if i not in ids)], steps=20)
    assert nearly.adapter in {t.adapter for t in elsewhere(config, store, scored, mine)}


def test_observations_become_a_rule_with_its_page(trainings):
    made, config, mine, others = trainings
    store, scored = made.store, made.scored
    seen = observed(config, store, scored, mine + others)
    assert set(seen["rows"]) == {24}
    assert seen.height == 51 and seen["apart"].sum() == 12 and seen["kind"].n_unique() == 2
    assert seen["perplexity"].max() < 4  # the giant is held to the pool's 99th percentile
    table = keep(config, store, scored, seen)
    assert store.read(table).equals(seen) and store.names()["planted.observations"] == table
    bounds = {"perplexity": (-3.0, 3.0), "mtld": (0.0, 9.0)}
    fitted = fit_observed(config, seen, bounds)
    assert fitted.passes and fitted.regression.coefficients[0] == pytest.approx(0.5, abs=0.03)
    rule = as_rule(config, store, seen, fitted)
    assert rule.subsets == 39 and rule.heldout_subsets == 12
    on_vllm = config.model_copy(update={"engine": Vllm()})
    assert as_rule(on_vllm, store, seen, fitted).model == rule.model == trained_on(EngineSpec())
    assert rule.version == as_rule(config, store, seen, fitted).version
    said = fit_facts(rule, fitted, seen, table, ["subset 9, no memory"], None)
    page, lines = fit_markdown(json.loads(json.dumps(said))), fit_text(said)
    assert "The rule planted is installed: Spearman" in page
    assert "- subset 9, no memory" in page and "| perplexity | 0." in page
    assert "perplexity" in lines and said["trainings"] == {"subsets": 48, "of_other_runs": 3, "failed": 1}
    turned = seen.with_columns(loss=pl.when("apart").then(10 / pl.col("loss")).otherwise("loss"))
    refused = fit_observed(config, turned, bounds)
    assert refused.spearman < -0.5 and not refused.passes
    rule, lies = as_rule(config, store, turned, refused), "rules/retired/planted-1.json"
    said = fit_facts(rule, refused, turned, table, [], lies)
    assert said["sentence"].startswith("No rule: Spearman") and not said["installed"]
    assert said["sentence"].endswith(f"can no longer be named either; it lies in {lies}.")


def test_a_refit_that_is_refused_takes_the_name_from_the_rule_before(trainings):
    made, config, mine, _ = trainings
    said = concluded(config, made.store, made.scored, mine)
    assert said["installed"] and said["retired"] is None and "planted" in rules(made.store)
    draws = [made.store.read(t.chosen, ["id"])["id"].to_list() for t in mine]
    turned = [made.training(n, ids, seed=1, slope=-0.5 if config.apart(n) else 0.5) for n, ids in enumerate(draws)]
    said = concluded(config, made.store, made.scored, turned)
    assert not said["installed"] and "planted" not in rules(made.store)
    assert said["retired"].startswith("rules/retired/planted-") and said["retired"] in fit_text(said)
    assert find_rule((made.store.root / said["retired"]).read_text()).name == "planted"
    again = concluded(config, made.store, made.scored, turned)
    assert again["retired"] is None and again["sentence"].endswith("It is not installed.")


def test_seeds_of_a_subset_and_losses_that_are_none_are_not_counted_as_observations(trainings):
    made, config, mine, others = trainings
    again = [replace(t, seed=1) for t in mine] + [replace(others[0], seed=1)]
    seen = observed(config, made.store, made.scored, [*mine, *others, *again])
    assert seen.height == 100 and seen["choice"].n_unique() == 51
    seen = seen.with_columns(loss=pl.when(pl.col("subset") == 0).then(float("nan")).otherwise("loss"))
    found = fit_observed(config, seen, {"perplexity": (-3.0, 3.0), "mtld": (0.0, 9.0)})
    assert (found.fitted, found.own, len(found.true)) == (38, 35, 12)  # 48 less 12 apart and one without a loss, and 3
    rule = as_rule(config, made.store, seen, found)
    assert rule.subsets == 38
    said = fit_facts(rule, found, seen, "table", [], None)
    assert said["fitted"] == {"observations": 38, "own": 35}
    page = fit_markdown(json.loads(json.dumps(said)))
    assert "Fitted on 38 observations, 35 of them subsets of its own, and tried on 12 subsets" in page
    bars = [(name, r, *interval(r, 35)) for name, r in said["alone"].items()]
    drawn = svg.intervals(bars, "Spearman's correlation of each indicator alone with the loss", "{:.2f}")
    assert svg.image(drawn, "correlation of each indicator with the loss") in page


def test_a_pool_whose_rows_are_all_alike_makes_no_rule_and_a_page(trainings):
    made, config, mine, _ = trainings
    seen = observed(config, made.store, made.scored, mine).with_columns(perplexity=1.0, mtld=2.0)
    found = fit_observed(config, seen, {"perplexity": (1.0, 1.0), "mtld": (2.0, 2.0)})
    assert not found.passes and set(found.left_out.values()) == {"is the same in every subset"}
    said = fit_facts(as_rule(config, made.store, seen, found), found, seen, "table", [], None)
    assert said["sentence"] == (
        "No rule: no indicator tells anything of the loss after training on 36 subsets. It is not installed."
    )
    assert "| mtld | is the same in every subset |" in fit_markdown(said) and "left out" in fit_text(said)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        pytest.param("indicators=[beauty]", "indicators", id="no-such-indicator"),
        pytest.param("indicators=[]", "indicators", id="none"),
        pytest.param("subsets=4", "subsets", id="too-few"),
        pytest.param("evaluate={max_tokens: 4}", "uses no such setting", id="idle-setting"),
        pytest.param("name='2024'", "published rule", id="taken-name"),
        pytest.param("train={seed: 3}", "seed", id="decided"),
        pytest.param("score=[{step: random}]", "is a select step", id="wrong-kind"),
    ],
)
def test_a_config_that_cannot_be_used_is_refused_by_name(folder, change, told):
    with pytest.raises(ConfigError, match=told):
        load_fit(folder / "fit.yaml", [change])


@pytest.mark.parametrize("name", ["snips", "dolly_3k"])
def test_the_shipped_fit_and_the_comparison_of_its_rule_are_of_one_rule(name):
    fit = load_fit(ROOT / "examples" / name / "fit.yaml")
    mined = load_comparison(ROOT / "examples" / name / "mined.yaml")
    assert (fit.pool, fit.heldout, fit.model) == (mined.pool, mined.heldout, mined.model) and len(mined.seeds) == 3
    named = {use.with_["rule"] for use in mined.arms["mined"].score if "rule" in use.with_}
    assert named == {fit.name} and mined.validation == fit.validation  # else validation rows would be trained on
    assert set(fit.indicators) - {"knn6"} <= set(fit.score[-1].config().asked())


def test_a_quarter_is_kept_apart_and_every_kind_of_draw_is_in_it(folder):
    config = load_fit(folder / "fit.yaml", ["subsets=32"])
    apart = [n for n in range(32) if config.apart(n)]
    assert len(apart) == 8 and {n % 4 for n in apart} == {0, 1, 2, 3}
