import json
import shutil

import pytest
from transformers import AutoTokenizer

from storage.schema import message
from tests.rows import rows
from tests.training.families import FAMILIES, MARKED, of_template, shipped, tokenizer
from training.encode import AGREED, CHANGED, KNOWN, MARKS, PREFIX, Template, encode_rows, load_tokenizer
from training.settings import TrainError

TALK = [("user", "What is\n2+2?"), ("assistant", "4, of course"), ("user", "sure?"), ("assistant", "Yes.")]


def learnt(template, *said):
    found = template.encode("r0", [message(*m) for m in said])
    return [template.tokenizer.decode([t]) for t, m in zip(found.tokens, found.learnt, strict=True) if m]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_answer_is_learnt_with_its_end_token_and_nothing_else(family):
    end = FAMILIES[family][2]
    lead = " " if family == "mistral" else ""
    said = "".join(learnt(Template(tokenizer(family)), *TALK))
    assert said == f"{lead}4, of course{end}{lead}Yes.{end}"


@pytest.mark.parametrize("family", MARKED)
def test_prefix_matching_tells_what_the_marks_tell(family):
    bare, marked = Template(tokenizer(family)), Template(tokenizer(family, MARKED[family]))
    assert marked.marked and not bare.marked
    messages = [message(*m) for m in TALK]
    found, told = bare.encode("r0", messages), marked.encode("r0", messages)
    assert (found.tokens, found.learnt, found.told) == (told.tokens, told.learnt, PREFIX) and told.told == MARKS


@pytest.mark.parametrize("said", [TALK[:2], TALK, [("system", "Be brief."), *TALK[:2]]], ids=["one", "two", "system"])
@pytest.mark.parametrize("name", shipped())
def test_every_template_that_trl_knows_is_learnt_as_it_is_shipped(name, said):
    if name == "glm4moe":
        pytest.skip("an answer ends with the next turn; refused, see below")
    if name == "gemma" and said[0][0] == "system":
        pytest.skip("Gemma 2 takes no system message")
    template = Template(of_template(shipped()[name][0]), name)
    found = template.encode("r0", [message(*m) for m in said])
    words = template.tokenizer.decode([t for t, m in zip(found.tokens, found.learnt, strict=True) if m])
    rest = template.tokenizer.decode([t for t, m in zip(found.tokens, found.learnt, strict=True) if not m])
    for role, text in said:
        assert (text in words) == (role == "assistant") and (text in rest) == (role != "assistant")
    assert found.told in (AGREED, KNOWN, CHANGED, PREFIX)


def test_a_template_whose_answers_end_with_the_next_turn_is_refused():
    with pytest.raises(TrainError, match="glm4moe writes no end token after an answer"):
        Template(of_template(shipped()["glm4moe"][0]), "glm4moe")


@pytest.mark.parametrize(
    ("name", "said", "told"),
    [
        ("gptoss", TALK[:2], AGREED),  # the marks hold the generation prompt too
        ("qwen3_5_think", TALK[:2], AGREED),
        ("qwen3_6", TALK[:2], AGREED),
        ("llama3", TALK, AGREED),
        ("phi3", TALK, KNOWN),  # no prefix, as the text ends otherwise; the marks are on the very same text
        ("qwen3", TALK, CHANGED),  # it has thoughts in earlier turns, which the shipped one leaves out
    ],
)
def test_each_row_says_how_what_it_learns_was_told(name, said, told):
    assert Template(of_template(shipped()[name][0])).encode("r0", [message(*m) for m in said]).told == told


def test_a_template_that_tells_of_today_is_filled_in_alike_on_every_day():
    today = "{{ strftime_now('%d %b %Y') }}" + FAMILIES["chatml"][0]
    template = Template(tokenizer("chatml", today))
    found = template.encode("r0", [message(*m) for m in TALK[:2]])
    assert template.tokenizer.decode(found.tokens).startswith("26 Jul 2024")


def test_the_known_marked_form_of_a_template_must_agree_on_every_row():
    template = Template(tokenizer("chatml"))
    template.known = MARKED["chatml"]
    assert learnt(template, *TALK)
    template.known = MARKED["chatml"].replace("m['role'] == 'assistant'", "m['role'] == 'user'")
    with pytest.raises(TrainError, match=r"row r0: what is learnt by prefix .* differs in .*What is"):
        learnt(template, *TALK)


def test_trl_knows_qwens_template_and_agrees_with_it():
    from trl.chat_template_utils import qwen2_5_chat_template

    template = Template(tokenizer("chatml", qwen2_5_chat_template))
    assert template.known and not template.marked
    assert "".join(learnt(template, *TALK)) == "4, of course<|im_end|>Yes.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns_and_marks_nothing_is_refused_by_row():
    forgets = FAMILIES["chatml"][0].replace("m['content']", "(m['content'] if loop.last else '...')")
    with pytest.raises(TrainError, match="does not mark what the assistant says in row r0"):
        learnt(Template(tokenizer("chatml", forgets)), *TALK)


def test_a_template_that_never_ends_an_answer_is_refused():
    endless = FAMILIES["mistral"][0].replace(" + eos_token", "")
    with pytest.raises(TrainError, match="no end token"):
        Template(tokenizer("mistral", endless), "org/model")


def test_a_tokenizer_without_a_template_is_refused(tiny_model):
    bare = AutoTokenizer.from_pretrained(tiny_model)
    bare.chat_template = None
    with pytest.raises(TrainError, match="org/model has no chat template"):
        Template(bare, "org/model")


def test_a_vocabulary_that_does_not_fit_the_model_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    said = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(said | {"vocab_size": 100}))
    with pytest.raises(TrainError, match="has token 261, and the model only 100 of them"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tiny_model)


def test_a_row_without_an_answer_is_refused_and_shown(tiny_model):
    silent = rows(("", ""), messages=[[message("user", "anybody there?")]])
    with pytest.raises(TrainError, match=r"row r0 has no learnable token.*anybody there"):
        encode_rows(Template(load_tokenizer(tiny_model)), silent, 100, "drop")
    with pytest.raises(TrainError, match="no row to train on"):
        encode_rows(Template(load_tokenizer(tiny_model)), silent[:0], 100, "drop")


def test_a_row_over_the_length_is_left_out_shortened_or_refused_as_asked(tiny_model):
    template = Template(load_tokenizer(tiny_model))
    talk = [message("system", "be"), *[message(r, c * 9) for r, c in (("user", "a"), ("assistant", "b")) * 3]]
    pool = rows(("", ""), ("q", "a"), ("x" * 99, "a"), messages=[talk, *rows(("q", "a"), ("x" * 99, "a"))["messages"]])
    dropped = encode_rows(template, pool, 60, "drop")
    assert [e.id for e in dropped.encoded] == ["r1"]
    assert dropped.left_out == {"r0": "71 tokens, over 60", "r2": "105 tokens, over 60"}
    cut = encode_rows(template, pool, 60, "truncate")
    assert [(e.id, e.cut) for e in cut.encoded] == [("r0", 2), ("r1", 0)] and list(cut.left_out) == ["r2"]
    said = template.tokenizer.decode(cut.encoded[0].tokens)
    assert said.startswith("<|bos|><|system|>be<|end|><|user|>aaaaaaaaa") and said.count("<|assistant|>") == 2
    with pytest.raises(TrainError, match="row r0 has 71 tokens, over the 60"):
        encode_rows(template, pool, 60, "refuse")
    with pytest.raises(TrainError, match="all 3 rows are longer than the 4 tokens"):
        encode_rows(template, pool, 4, "drop")


def test_tool_calls_that_are_no_json_are_refused_by_name(tiny_model):
    with pytest.raises(TrainError, match="row r0 has tool calls that are no JSON"):
        learnt(Template(load_tokenizer(tiny_model)), ("user", "q"), ("assistant", "a", "{"))
