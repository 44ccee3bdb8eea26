"""The pools that the repository carries hold what their READMEs say."""

import json
import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from curation.shingles import normalised
from examples.clean import mended
from examples.make import RECIPES
from examples.make_few import few
from training.nano.labels import HELD_OUT_INTENTS

EXAMPLES = Path(__file__).parents[1] / "examples"
GIANT = 100_000  # characters: no request is as long
BROKEN = {"truncated": 12, "empty answer": 9, "missing field": 9, "giant": 1}
# Pool lines that ask what a test row asks: in SNIPS 20 requests and a copy of one of them.
COUNTS = {
    "snips": {"usable": 2769, "latin-1": 8, "as in test": 21},
    "clinc15": {"usable": 1825, "latin-1": 0, "as in test": 1},
}

Line = dict[str, str]


def read(name: str, file: str) -> list[Line]:
    return [json.loads(line) for line in (EXAMPLES / name / file).read_text().splitlines()]


def pool(name: str) -> tuple[dict[int, Line], Counter[str]]:
    """The usable lines by number, and how many are broken in which way."""
    usable, odd = {}, Counter()
    for number, raw in enumerate((EXAMPLES / name / "raw.jsonl").read_bytes().splitlines(), 1):
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("latin-1")
            odd["latin-1"] += 1
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            odd["truncated"] += 1
            continue
        if "output" not in line:
            odd["missing field"] += 1
        elif not (line["output"] or "").strip():
            odd["empty answer"] += 1
        elif len(line["input"]) > GIANT:
            odd["giant"] += 1
        else:
            usable[number] = line
    return usable, odd


def asked(lines: list[Line]) -> list[str]:
    return (
        pl.DataFrame({"input": [line["input"] for line in lines]})
        .select(normalised(pl.col("input")))["input"]
        .to_list()
    )


@pytest.mark.parametrize("name", RECIPES)
def test_files_hold_as_many_lines_as_the_readme_says(name):
    told = re.findall(r"^\| `(\w+\.jsonl)` \| ([\d,]+) \|", (EXAMPLES / name / "README.md").read_text(), re.MULTILINE)
    assert {file for file, _ in told} == {path.name for path in (EXAMPLES / name).glob("*.jsonl")}
    for file, number in told:
        assert len((EXAMPLES / name / file).read_bytes().splitlines()) == int(number.replace(",", "")), file


@pytest.mark.parametrize("name", RECIPES)
def test_lines_are_broken_as_the_readme_says(name):
    usable, odd = pool(name)
    assert len(usable) == COUNTS[name]["usable"]
    assert odd == Counter(BROKEN | {"latin-1": COUNTS[name]["latin-1"]})
    told = " ".join((EXAMPLES / name / "README.md").read_text().split())
    assert "12 cut off in the middle, 9 with an empty answer, 9 without one, and one with 200,000 characters" in told


@pytest.mark.parametrize("name", RECIPES)
def test_spoilt_lines_are_those_of_the_pool_with_another_label(name):
    usable, _ = pool(name)
    labels = set(RECIPES[name].labels.values())
    for line in read(name, "spoilt.jsonl"):
        assert usable[line["line"]]["output"] == line["given"] != line["true"]
        assert {line["given"], line["true"]} <= labels
    # 35 % of the lines that are no copies, and whatever was copied of them
    assert len(read(name, "spoilt.jsonl")) / len(usable) == pytest.approx(0.35, abs=0.005)


@pytest.mark.parametrize("name", RECIPES)
def test_no_request_is_in_pool_and_test_but_those_the_readme_names(name):
    held = set(asked(read(name, "test.jsonl")))
    usable, _ = pool(name)
    assert sum(text in held for text in asked(list(usable.values()))) == COUNTS[name]["as in test"]


@pytest.mark.parametrize("name", RECIPES)
def test_every_line_carries_the_instruction_and_a_label_of_the_recipe(name):
    usable, _ = pool(name)
    for line in [*usable.values(), *read(name, "test.jsonl")]:
        assert line["instruction"] == RECIPES[name].instruction
        assert line["output"] in RECIPES[name].labels.values()


def test_clinc15_is_the_intents_that_the_embedded_model_was_not_given():
    names = {intent.replace("_", " ") for intent in HELD_OUT_INTENTS}
    assert Counter(line["output"] for line in read("clinc15", "test.jsonl")) == Counter(dict.fromkeys(names, 30))
    usable, _ = pool("clinc15")
    true = {line["line"]: line["true"] for line in read("clinc15", "spoilt.jsonl")}
    assert {true.get(number, line["output"]) for number, line in usable.items()} == names


def test_copies_of_clinc15_keep_the_answer_of_their_original():
    usable, _ = pool("clinc15")
    answers: dict[str, list[str]] = {}
    for line, text in zip(usable.values(), asked(list(usable.values())), strict=True):
        answers.setdefault(text, []).append(line["output"])
    copied = [found for found in answers.values() if len(found) > 1]
    # 28 of the 56 are exact and 14 differ in case or punctuation; "please" and "now" make another text
    assert sum(map(len, copied)) - len(copied) == 42
    assert all(len(set(found)) == 1 for found in copied)


def test_drop_is_what_its_readme_says():
    files = {name: read("drop", f"{name}.jsonl") for name in ("raw", "test", "spoilt")}
    told = re.findall(r"^\| `(\w+)\.jsonl` \| ([\d,]+) \|", (EXAMPLES / "drop/README.md").read_text(), re.MULTILINE)
    assert {name: int(number) for name, number in told} == {name: len(lines) for name, lines in files.items()}
    passages = {
        name: {line["instruction"].split("\nQuestion: ")[0] for line in files[name]} for name in ("raw", "test")
    }
    assert not passages["raw"] & passages["test"] and len(passages["test"]) == 20
    for line in files["raw"] + files["test"]:
        passage = line["instruction"].split("\nQuestion: ")[0]
        assert len(passage) <= 700 + len("Passage: ") and line["output"].lower() in passage.lower()
    for wrong in files["spoilt"]:
        assert files["raw"][wrong["line"] - 1]["output"] == wrong["given"] != wrong["true"]


def test_dolly_is_what_its_readme_says():
    files = {name: read("dolly_3k", f"{name}.jsonl") for name in ("raw", "test")}
    told = re.findall(r"^\| `(\w+)\.jsonl` \| ([\d,]+) \|", (EXAMPLES / "dolly_3k/README.md").read_text(), re.MULTILINE)
    counted = {name: len(lines) for name, lines in files.items()}
    assert {name: int(number.replace(",", "")) for name, number in told} == counted
    asked = {name: {line["instruction"] for line in lines} for name, lines in files.items()}
    assert not asked["raw"] & asked["test"]
    for line in files["raw"] + files["test"]:
        assert list(line) == ["instruction", "input", "output", "category"] and line["output"]
        assert len(line["instruction"]) + len(line["input"]) + len(line["output"]) <= 1000
    assert len({line["category"] for line in files["raw"]}) == 8


def test_the_mixed_pool_is_what_its_readme_says():
    files = {name: read("mixed", f"{name}.jsonl") for name in ("raw", "test", "spoilt")}
    told = re.findall(r"^\| `(\w+)\.jsonl` \| ([\d,]+) \|", (EXAMPLES / "mixed/README.md").read_text(), re.MULTILINE)
    assert {name: int(n.replace(",", "")) for name, n in told} == {name: len(lines) for name, lines in files.items()}
    raw, test = files["raw"], files["test"]
    assert Counter(line["set"] for line in raw) == {"snips": 800, "clinc15": 800, "dolly": 800}
    assert Counter(line["set"] for line in test) == {"snips": 350, "clinc15": 350}
    assert not set(asked(test)) & set(asked([line for line in raw if line["input"]]))
    assert [n for n, line in enumerate(raw, 1) if line["set"] == "dolly"] == [w["line"] for w in files["spoilt"]]
    for line in test + [line for line in raw if line["set"] != "dolly"]:
        assert line["output"] in RECIPES[line["set"]].labels.values()


@pytest.mark.parametrize("name", ["snips", "drop"])
def test_a_clean_pool_is_the_raw_one_with_true_answers_in_the_place_of_wrong_ones(name):
    raw = (EXAMPLES / name / "raw.jsonl").read_bytes().splitlines(keepends=True)
    wrong = {line["line"]: line for line in read(name, "spoilt.jsonl")}
    clean = mended(raw, {n: line["true"] for n, line in wrong.items()})
    assert [n for n, (a, b) in enumerate(zip(raw, clean, strict=True), 1) if a != b] == sorted(wrong)
    for n, line in wrong.items():
        now = json.loads(clean[n - 1])
        assert now.pop("output") == line["true"]
        assert now | {"output": line["given"]} in [
            json.loads(raw[n - 1].decode(c, "replace")) for c in ("utf-8", "latin-1")
        ]


@pytest.mark.parametrize("n", [20, 50, 100])
def test_the_few_rows_of_snips_are_right_lines_of_its_pool_and_none_is_held_out(n):
    lines = (EXAMPLES / f"snips/seed{n}.jsonl").read_text().splitlines()
    assert few(EXAMPLES / "snips", n, seed=0) == lines and len(set(lines)) == n
    raw = (EXAMPLES / "snips/raw.jsonl").read_text(errors="replace").splitlines()
    spoilt = {said["line"] for said in read("snips", "spoilt.jsonl")}
    right = {line for number, line in enumerate(raw, 1) if number not in spoilt}
    assert set(lines) <= right
    held, asked = read("snips", "test.jsonl"), [json.loads(line) for line in lines]
    letters = [{re.sub(r"\W", "", row["input"].casefold()) for row in some} for some in (held, asked)]
    assert not letters[0] & letters[1]


@pytest.mark.parametrize(("name", "yes"), [("esnli", (40, 175)), ("openpi", None)])
def test_the_tasks_of_self_guide_are_what_their_readme_says(name, yes):
    files = [read("self_guide", f"{name}{end}.jsonl") for end in ("", "-test")]
    assert [len(lines) for lines in files] == [60, 240]
    inputs = [{line["input"] for line in lines} for lines in files]
    assert [len(said) for said in inputs] == [60, 240] and not inputs[0] & inputs[1]
    assert len({line["instruction"] for lines in files for line in lines}) == 1
    if yes:
        assert tuple(sum(line["output"] == "yes" for line in lines) for lines in files) == yes
