import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from curation.step import Completion, Failed
from storage.schema import message
from synthesis import decode
from synthesis.local_engine import EngineError, LocalEngine


def ask(text):
    return [message("user", text)]


SHARED = "Which of these is it? Answer with one letter. "
PROMPTS = [ask(SHARED + t) for t in ("a", "something longer than the others", "", "middle one")]


@pytest.fixture(scope="module")
def engine(tiny_model):
    return LocalEngine(tiny_model, device="cpu")


@pytest.fixture(params=[pytest.param(10**9, id="merged"), pytest.param(0, id="beside the weights")])
def adaptable(request, tiny_model):
    return LocalEngine(tiny_model, device="cpu", merge_below=request.param)


@pytest.fixture(scope="module")
def plain(tiny_model):
    return AutoModelForCausalLM.from_pretrained(tiny_model).eval(), AutoTokenizer.from_pretrained(tiny_model)


def ids_of(tokenizer, prompt, ask=True):
    said = [{"role": m["role"], "content": m["content"]} for m in prompt]
    encoded = tokenizer.apply_chat_template(said, add_generation_prompt=ask, return_tensors="pt", return_dict=True)
    return encoded["input_ids"]


@torch.inference_mode()
def next_odds(model, ids):
    return model(ids).logits[0, -1].softmax(-1)


@torch.inference_mode()
def said_logprobs(model, tokenizer, conversation):
    before = ids_of(tokenizer, conversation[:-1]).shape[1]
    ids = ids_of(tokenizer, conversation, ask=False)
    logprobs = model(ids).logits[0, before - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, ids[0, before:, None])[:, 0].tolist()


def greedy(model, ids, tokens, ends=None):
    mask = torch.ones_like(ids)
    how = {"eos_token_id": ends} if ends else {}
    whole = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, **how)
    return whole[0, ids.shape[1] :].tolist()


def test_greedy_says_what_transformers_generate_says(engine, plain):
    model, tokenizer = plain
    got = engine.generate(PROMPTS, max_tokens=24, with_logprobs=True)
    for prompt, [completion] in zip(PROMPTS, got, strict=True):
        tokens = greedy(model, ids_of(tokenizer, prompt), 24)
        assert len(completion.logprobs) == len(tokens)
        assert completion.text == tokenizer.decode(tokens, skip_special_tokens=True)


def test_an_answer_ends_at_the_end_token_and_its_neighbours_go_on(tiny_model, plain):
    model, tokenizer = plain
    engine = LocalEngine(tiny_model, device="cpu")
    prompts = [ids_of(tokenizer, p) for p in PROMPTS]
    free = [greedy(model, ids, 12) for ids in prompts]
    ends = [tokenizer.eos_token_id, max(free, key=len)[4]]
    engine._base.chat.ends = tuple(ends)
    whole = [greedy(model, ids, 12, ends) for ids in prompts]
    assert len({len(w) for w in whole}) > 1
    for [c], tokens in zip(engine.generate(PROMPTS, max_tokens=12, with_logprobs=True), whole, strict=True):
        assert len(c.logprobs) == len(tokens)
        assert c.text == tokenizer.decode([t for t in tokens if t not in ends], skip_special_tokens=True)


def test_samples_repeat_with_the_seed_and_differ_without(engine):
    draw = {"max_tokens": 12, "n": 3, "temperature": 1.0}
    first = engine.generate(PROMPTS, seed=1, **draw)
    assert first == engine.generate(PROMPTS, seed=1, **draw)
    assert first != engine.generate(PROMPTS, seed=2, **draw)
    assert len({c.text for c in first[0]}) == 3


def test_samples_do_not_depend_on_how_they_are_batched(tiny_model, engine):
    draw = {"max_tokens": 12, "n": 3, "temperature": 1.0, "top_p": 0.9, "seed": 4}
    small = LocalEngine(tiny_model, device="cpu", batch_tokens=1)
    assert texts(small.generate(PROMPTS, **draw)) == texts(engine.generate(PROMPTS, **draw))


def test_samples_that_say_the_same_are_read_once(tiny_model):
    engine = LocalEngine(tiny_model, device="cpu", batch_tokens=10**6)
    read = []
    engine._base.model.get_input_embeddings().register_forward_hook(lambda _, given, __: read.append(given[0].numel()))
    draw = {"max_tokens": 6, "temperature": 1.0}
    one = engine.generate(PROMPTS, top_p=1e-6, **draw)
    for_one = sum(read)
    assert texts(engine.generate(PROMPTS, top_p=1e-6, n=5, **draw)) == [5 * said for said in texts(one)]
    assert sum(read) == 2 * for_one
    engine.generate(PROMPTS, n=5, **draw)  # these part
    assert sum(read) > 3.2 * for_one


def test_samples_follow_the_models_own_odds(engine, plain):
    model, tokenizer = plain
    draws = engine.generate([ask("x")], max_tokens=1, n=4000, temperature=1.0, with_logprobs=True)[0]
    odds = next_odds(model, ids_of(tokenizer, ask("x")))
    best = int(odds.argmax())
    share = sum(abs(c.logprobs[0] - float(odds[best].log())) < 1e-5 for c in draws) / len(draws)
    assert share == pytest.approx(float(odds[best]), abs=0.03)


def test_top_p_leaves_only_the_likeliest_tokens(engine, plain):
    model, tokenizer = plain
    likeliest = float(next_odds(model, ids_of(tokenizer, ask("x"))).max().log())
    draws = engine.generate([ask("x")], max_tokens=1, n=50, temperature=1.0, top_p=1e-6, with_logprobs=True)[0]
    assert [c.logprobs[0] for c in draws] == pytest.approx([likeliest] * 50, abs=1e-5)


def test_logprobs_of_what_was_said_are_those_of_saying_it(engine):
    [drawn] = engine.generate([ask("hello")], max_tokens=3, n=60, temperature=1.0, with_logprobs=True)
    whole = [c for c in drawn if c.text.isascii() and len(c.text) == len(c.logprobs)]  # other bytes are no text alone
    assert len(whole) > 3
    again = engine.logprobs([[*ask("hello"), message("assistant", c.text)] for c in whole])
    for told, c in zip(again, whole, strict=True):
        assert told[:-1] == pytest.approx(c.logprobs, abs=1e-4)


@pytest.mark.parametrize("at_once", [pytest.param(4, id="shared prefix"), pytest.param(1, id="none shared")])
def test_choose_and_logprobs_are_those_of_a_plain_forward(engine, plain, at_once):
    model, tokenizer = plain

    def asked(ask, several):
        return [answer for i in range(0, len(several), at_once) for answer in ask(several[i : i + at_once])]

    letters = [tokenizer("A")["input_ids"][0], tokenizer("B")["input_ids"][0]]
    for got, prompt in zip(asked(lambda p: engine.choose(p, ["A", "B"]), PROMPTS), PROMPTS, strict=True):
        assert got == pytest.approx(next_odds(model, ids_of(tokenizer, prompt))[letters].tolist(), abs=1e-4)
    told = [[*p, message("assistant", a)] for p, a in zip(PROMPTS, ["A", "a longer one", "", "B"], strict=True)]
    for got, conversation in zip(asked(engine.logprobs, told), told, strict=True):
        assert got == pytest.approx(said_logprobs(model, tokenizer, conversation), abs=1e-4)
        assert len(got) == len(conversation[-1]["content"]) + 1  # one byte a token, and the end token


def test_the_shared_prefix_is_really_shared(engine):
    ids = [engine._base.chat.tokens([SHARED + t])[0] for t in ("a", "b")]
    with engine._base.speaking(None) as model:
        assert decode.shared_prefix(model, ids).length == len(SHARED)


def test_the_order_is_kept_when_lengths_vary(engine):
    alone = [engine.choose([p], ["A"])[0][0] for p in PROMPTS]
    assert [c[0] for c in engine.choose(PROMPTS, ["A"])] == pytest.approx(alone, abs=1e-4)
    assert len(set(alone)) == len(alone)


def test_a_prompt_longer_than_the_context_is_an_error_value_and_its_neighbours_are_fine(engine):
    long = ask("x" * 300)
    [good], [bad], [after] = engine.generate([PROMPTS[0], long, PROMPTS[1]], max_tokens=4)
    assert "do not fit the model's context of 256" in bad.error
    assert (good, after) == tuple(c for [c] in engine.generate(PROMPTS[:2], max_tokens=4))
    assert isinstance(engine.choose([long, PROMPTS[0]], ["A"])[0], Failed)
    answered = [*PROMPTS[0], message("assistant", "x" * 300)]
    failed, fine = engine.logprobs([answered, [*PROMPTS[0], message("assistant", "x")]])
    assert isinstance(failed, Failed) and len(fine) == 2


def test_an_answer_stops_at_the_end_of_the_context(engine):
    [[c]] = engine.generate([ask("x" * 245)], max_tokens=50, with_logprobs=True)
    assert c.error is None and 0 < len(c.logprobs) < 10


def test_an_answer_of_several_tokens_is_refused_by_name(engine):
    with pytest.raises(ValueError, match="'AB' is not one token"):
        engine.choose(PROMPTS, ["A", "AB"])


def test_each_view_speaks_with_its_own_adapter(adaptable, plain, tiny_model, tiny_adapters):
    from peft import PeftModel

    tokenizer = plain[1]
    bare = adaptable.choose(PROMPTS, ["A", "B"])
    views = [adaptable.with_adapter(folder) for folder in tiny_adapters]
    letters = [tokenizer("A")["input_ids"][0], tokenizer("B")["input_ids"][0]]
    for view, folder in [*zip(views, tiny_adapters, strict=True)] * 2:  # twice: switching back and forth
        own = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder).eval()
        for got, prompt in zip(view.choose(PROMPTS, ["A", "B"]), PROMPTS, strict=True):
            assert got == pytest.approx(next_odds(own, ids_of(tokenizer, prompt))[letters].tolist(), abs=1e-4)
        assert view.choose(PROMPTS, ["A", "B"]) != bare
    assert adaptable.choose(PROMPTS, ["A", "B"]) == bare
    assert len({adaptable.identity, *[v.identity for v in views]}) == 3


def test_an_adapter_trained_again_in_the_same_place_is_not_the_old_one(adaptable, tiny_adapters, tmp_path):
    answers = []
    for trained in tiny_adapters:
        shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
        view = adaptable.with_adapter(tmp_path)
        answers.append((view.identity, view.choose(PROMPTS[:1], ["A"])))
    assert answers[0][0] != answers[1][0]
    assert answers[1][1] == adaptable.with_adapter(tiny_adapters[1]).choose(PROMPTS[:1], ["A"]) != answers[0][1]


def test_a_folder_that_is_no_adapter_is_refused_by_name(adaptable, tmp_path):
    with pytest.raises(EngineError, match="is no adapter"):
        adaptable.with_adapter(tmp_path, identity="x")


def test_no_prompts_give_no_answers(engine):
    assert engine.generate([], max_tokens=3) == engine.choose([], ["A"]) == engine.logprobs([]) == []


def test_tokens_are_counted_without_special_ones(engine):
    assert engine.count_tokens(["", "abc"]) == [0, 3]


def texts(completions: list[list[Completion]]) -> list[list[str]]:
    return [[c.text for c in row] for row in completions]
