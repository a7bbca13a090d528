from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from reference import alone, build, next_logits
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from srlm.errors import UserError
from srlm.policies.transformer.log_prob import response_log_prob
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.recompute import recompute_activations
from srlm.policies.transformer.responses import Responses
from srlm.types import Prompts

ENDS = list(range(2, 40))  # ids that end a response: enough of them that some end early
ITEMS = ["Say abc", "n", "Say something rather long", "op op", "x"]
PROMPTS = Prompts.uniform(ITEMS)


def load(folder: Path, *, lora_rank: int = 4, dtype: str = "fp32", **options) -> TransformerPolicy:
    options = {"max_new_tokens": 12, **options}
    return TransformerPolicy.load(str(folder), lora_rank=lora_rank, dtype=dtype, **options)


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A chat model with several EOS ids, so that some of its responses end."""
    folder = tmp_path_factory.mktemp("short")
    model = make_model()
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def perturb(policy: TransformerPolicy, scale: float = 0.05, seed: int = 1) -> None:
    """Move the trained weights, as an update would."""
    draw = seeded(seed)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=draw))


def weights(policy: TransformerPolicy) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def assert_equal_weights(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def same(one: Responses, other: Responses) -> bool:
    return [one.ids(p) for p in range(len(one.length))] == [
        other.ids(p) for p in range(len(other.length))
    ] and torch.equal(one.finished, other.finished)


# Prompts


def test_chat_template_or_raw_text(tiny: Path, tiny_base: Path) -> None:
    tokenizer = make_tokenizer()

    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    policy = load(tiny)
    assert policy.encode("abc") == ids("<|im_start|>user\nabc<|im_end|>\n<|im_start|>assistant\n")
    talk = ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})
    opened = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    assert policy.encode(talk) == ids(opened)
    raw = load(tiny, raw_prompts=True)
    assert raw.encode("abc") == ids("abc")
    assert raw.encode(talk) == ids(opened)
    base = load(tiny_base)
    assert base.encode("abc") == ids("abc")
    with pytest.raises(UserError, match="no chat template"):
        base.encode(talk)
    with pytest.raises(UserError, match="no tokens"):
        base.encode("")


def test_a_prompt_is_not_closed_by_the_tokenizer(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(chat=False)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("$A <|im_end|>", special_tokens=[("<|im_end|>", 2)])
    make_model().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("abc")["input_ids"][-1] == 2
    assert load(tmp_path).encode("abc") == load(tiny_base).encode("abc")


def test_prompts_must_leave_room_for_the_response(tiny_base: Path) -> None:
    policy = load(tiny_base, max_new_tokens=12)  # a context of 512 bytes
    policy.check_prompts(Prompts.uniform(["a" * 500]), 2)
    with pytest.raises(UserError, match="prompt 2 has 501 tokens"):
        policy.check_prompts(Prompts.uniform(["a", "a" * 501]), 2)


def test_ends_come_from_the_tokenizer_and_the_generation_config(short: Path, tiny: Path, tmp_path: Path) -> None:
    assert load(short).decoding.eos == frozenset(ENDS)
    assert load(tiny).decoding.eos == {2}
    model = make_model()
    model.generation_config.eos_token_id = [7, 2]
    model.save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path).decoding.eos == {2, 7}


def test_a_model_without_eos_needs_stop_strings(tmp_path: Path) -> None:
    model, tokenizer = make_model(), make_tokenizer(chat=False)
    model.generation_config.eos_token_id = model.config.eos_token_id = None
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="--stop"):
        TransformerPolicy(model, tokenizer, max_new_tokens=4)
    assert TransformerPolicy(model, tokenizer, max_new_tokens=4, stop=("\n",)).decoding.eos == frozenset()


# Samples and scores


def test_scores_are_those_of_each_response_alone(short: Path) -> None:
    policy = load(short, token_budget=300)
    perturb(policy)
    responses = policy.sample(PROMPTS, 4, seeded())
    finished = responses.finished
    assert finished.any() and not finished.all()
    assert policy.tokenizer.pad_token_id == policy.tokenizer.eos_token_id == 2
    scores = policy.log_prob(PROMPTS, responses)
    for p, item in enumerate(ITEMS):
        for k, ids in enumerate(responses.ids(p)):
            assert scores[p, k] == pytest.approx(alone(policy.model, policy.encode(item), ids), abs=1e-4)


def test_eos_is_scored_once_and_padding_never(tiny: Path) -> None:
    policy = load(tiny)
    ids = [[70, 71, 2], [70, 71, 80]]
    tokens = torch.full((1, 2, 12), 2, dtype=torch.int32)  # padded with EOS
    tokens[0, :, :3] = torch.tensor(ids)
    responses = Responses(tokens, torch.tensor([[3, 3]]), torch.tensor([[True, False]]))
    assert responses.ids(0) == ids
    one = Prompts.uniform(["Say abc"])
    prompt = policy.encode("Say abc")
    scores = policy.log_prob(one, responses)[0]
    for k, response in enumerate(ids):
        assert float(scores[k]) == pytest.approx(alone(policy.model, prompt, response), abs=1e-4)
    twice = alone(policy.model, prompt, [70, 71, 2, 2])
    assert abs(float(scores[0]) - twice) > 0.1
    tokens[0, :, 3:] = 99  # whatever lies behind the end
    assert torch.equal(policy.log_prob(one, responses)[0], scores)


def test_responses_end_where_they_say(short: Path) -> None:
    policy = load(short)
    responses = policy.sample(PROMPTS, 16, seeded())
    assert responses.length.shape == responses.finished.shape == (len(ITEMS), 16)
    kinds = set()
    for p in range(len(ITEMS)):
        for ids, finished in zip(responses.ids(p), responses.finished[p].tolist(), strict=True):
            assert 1 <= len(ids) <= 12
            assert not set(ENDS) & set(ids[:-1])
            assert finished == (ids[-1] in ENDS)
            assert finished or len(ids) == 12
            kinds.add((finished, len(ids) == 12))
    assert len(kinds) >= 2


def test_samples_depend_on_the_generator_and_nothing_else(short: Path) -> None:
    policy = load(short)
    one = policy.sample(PROMPTS, 6, seeded())
    assert same(policy.sample(PROMPTS, 6, seeded()), one)
    assert not same(policy.sample(PROMPTS, 6, seeded(1)), one)
    for budget in (1, 60, 10_000):
        policy.room.tokens = budget
        assert same(policy.sample(PROMPTS, 6, seeded()), one)
    stream = seeded()
    assert same(policy.sample(PROMPTS, 6, stream), one)
    assert not same(policy.sample(PROMPTS, 6, stream), one)
    rows = {tuple(map(tuple, one.ids(p))) for p in range(len(ITEMS))}
    assert len(rows) == len(ITEMS)


def test_two_equal_prompts_get_independent_samples(tiny: Path) -> None:
    policy = load(tiny)
    responses = policy.sample(Prompts.uniform(["a", "a"]), 4, seeded())
    assert len({tuple(ids) for p in range(2) for ids in responses.ids(p)}) == 8


def test_greedy_is_transformers_greedy(short: Path) -> None:
    policy = load(short)
    perturb(policy)
    model = policy.model
    responses = policy.greedy(PROMPTS)
    for p, item in enumerate(ITEMS):
        prompt = torch.tensor([policy.encode(item)])
        whole = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ENDS,
            pad_token_id=0,
        )
        assert responses.ids(p) == [whole[0, prompt.shape[1] :].tolist()]


def test_prompts_of_unequal_length_where_positions_are_slots(tmp_path: Path) -> None:
    build("bart", vocab_size=259).save_pretrained(tmp_path)
    make_tokenizer(chat=False).save_pretrained(tmp_path)
    policy = load(tmp_path, lora_rank=0)
    greedy = policy.greedy(PROMPTS)
    assert len({len(ids) for ids in policy.ids(PROMPTS)}) > 2
    for row, prompt in enumerate(policy.ids(PROMPTS)):
        (said,) = greedy.ids(row)
        for place, word in enumerate(said):
            assert int(next_logits(policy.model, prompt, [*said[:place], 0])[-1].argmax()) == word


def test_temperature_and_top_p_never_touch_scores(short: Path) -> None:
    plain, cold, cut = load(short), load(short, temperature=0.3), load(short, top_p=0.5)
    responses = plain.sample(PROMPTS, 4, seeded())
    scores = plain.log_prob(PROMPTS, responses)
    for policy in (cold, cut):
        assert not same(policy.sample(PROMPTS, 4, seeded()), responses)
        assert torch.equal(policy.log_prob(PROMPTS, responses), scores)


def test_scoring_does_not_depend_on_the_token_budget(short: Path) -> None:
    policy = load(short)
    responses = policy.sample(PROMPTS, 4, seeded())
    scores, entropy = policy.score(PROMPTS, responses, with_entropy=True)
    assert (entropy > 0).all()
    assert torch.equal(policy.score(PROMPTS, responses)[1], torch.zeros_like(entropy))
    seen: list[tuple[int, int]] = []
    for budget, step in ((1, 4), (10_000, 4), (300, 1), (300, 99)):
        policy.room.tokens, policy.scorer.prompts_per_step = budget, step
        again, entropies = policy.score(
            PROMPTS, responses, with_entropy=True, progress=lambda done, total: seen.append((done, total))
        )
        assert (again - scores).abs().max() <= 1e-4
        assert (entropies - entropy).abs().max() <= 1e-4
    assert set(seen) <= {(d, 5) for d in range(1, 6)} and seen.count((5, 5)) == 4


def test_a_model_that_reads_no_trees_samples_and_scores_the_same(tmp_path: Path) -> None:
    model = build("mamba", vocab_size=259)
    policy = TransformerPolicy(model, make_tokenizer(), max_new_tokens=8)
    assert not policy.shared
    responses = policy.sample(PROMPTS, 3, seeded())
    scores = policy.log_prob(PROMPTS, responses)
    for p, item in enumerate(ITEMS):
        for k, ids in enumerate(responses.ids(p)):
            assert scores[p, k] == pytest.approx(alone(model, policy.encode(item), ids), abs=1e-4)


# Stop strings


def printable_pairs(ids: Sequence[int], tokenizer) -> list[tuple[int, str]]:
    """Where two successive bytes are ASCII, and hence one character each."""
    texts = [tokenizer.decode([i]) for i in ids]
    fine = [len(t) == 1 and 33 <= ord(t) < 127 for t in texts]
    return [(i, texts[i] + texts[i + 1]) for i in range(len(ids) - 1) if fine[i] and fine[i + 1]]


def test_a_stop_string_over_two_tokens_ends_a_response_like_eos(tiny_base: Path) -> None:
    plain = load(tiny_base, max_new_tokens=40)
    free = plain.sample(PROMPTS, 8, seeded())
    row, at, stop = next(
        ((p, k), at, stop)
        for p in range(len(ITEMS))
        for k, ids in enumerate(free.ids(p))
        for at, stop in printable_pairs(ids, plain.tokenizer)
        if at > 2
    )
    policy = load(tiny_base, max_new_tokens=40, stop=(stop, "never"))
    stopped = policy.sample(PROMPTS, 8, seeded())
    scores = policy.log_prob(PROMPTS, stopped)
    texts = policy.texts(stopped)
    for p in range(len(ITEMS)):
        for k, (whole, ids) in enumerate(zip(free.ids(p), stopped.ids(p), strict=True)):
            cuts = [n + 2 for n, pair in printable_pairs(whole, policy.tokenizer) if pair == stop]
            assert ids == (whole[: cuts[0]] if cuts else whole)
            assert bool(stopped.finished[p, k]) == (bool(cuts) or ids[-1] == 2)
            assert scores[p, k] == pytest.approx(alone(policy.model, policy.encode(ITEMS[p]), ids), abs=1e-3)
            assert stop not in texts[p][k]
    (p, k), length = row, at + 2
    assert int(stopped.length[p, k]) <= length < int(free.length[p, k])


@pytest.mark.parametrize("stop", ["\n\n", "👩‍👩‍👧‍👦", "END"])
def test_a_stop_string_is_found_whatever_its_length_in_tokens(tiny_base: Path, stop: str) -> None:
    policy = load(tiny_base, stop=("unrelated", stop))
    ids = policy.tokenizer("some text before " + stop)["input_ids"]
    assert policy.ended(ids)
    assert not policy.ended(ids[:-1])


def test_token_ends_follow_whole_characters(tiny_base: Path) -> None:
    """The tokenizer knows single bytes: three of them are a sign, and only the last one shows it."""
    policy = TransformerPolicy.load(str(tiny_base), max_new_tokens=8, dtype="fp32", lora_rank=0, stop=["cd"])
    ids = policy.tokenizer("a漢b")["input_ids"]
    eos = policy.tokenizer.eos_token_id
    assert policy.token_ends([*ids, eos]) == [1, 1, 1, 2, 3, 3]
    assert policy.token_ends(ids[:3]) == [1, 1, 1]
    assert policy.token_ends(policy.tokenizer("abcd")["input_ids"]) == [1, 2, 2, 2]
    assert policy.token_ends([]) == []


def test_text_is_cut_before_the_first_stop_string(tiny_base: Path) -> None:
    policy = load(tiny_base, stop=("##", "Q:"), max_new_tokens=20)
    rows = [policy.tokenizer(text)["input_ids"] for text in ("one Q: two ##", "one ## two Q:", "plain<|im_end|>")]
    assert [policy.text(ids) for ids in rows] == ["one ", "one ", "plain"]


# Weights


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_decoding_leaves_the_weights_as_they_were(tiny: Path, dtype: str) -> None:
    policy = load(tiny, dtype=dtype)
    perturb(policy)
    before = weights(policy)
    policy.sample(PROMPTS, 2, seeded())
    policy.greedy(PROMPTS)
    assert_equal_weights(weights(policy), before)
    with pytest.raises(KeyError), policy.merged():
        changed = sum(not torch.equal(value, before[name]) for name, value in weights(policy).items())
        assert changed == 14  # 7 linear maps in 2 layers
        raise KeyError
    assert_equal_weights(weights(policy), before)


def test_merged_weights_are_the_adapted_model(tiny: Path) -> None:
    policy = load(tiny)
    perturb(policy)
    ids = torch.arange(3, 20)[None]
    with torch.no_grad():
        adapted = policy.model(ids).logits
        with policy.merged():
            with policy.merged():  # as whoever draws asks for, whatever is around it
                assert (policy.model(ids).logits - adapted).abs().max() <= 1e-4
            assert (policy.model(ids).logits - adapted).abs().max() <= 1e-4
        with policy.initial():
            assert (policy.model(ids).logits - adapted).abs().max() > 0.1
        assert torch.equal(policy.model(ids).logits, adapted)


def test_layers_that_share_a_weight_have_no_adapters_of_their_own(tmp_path: Path) -> None:
    """Merged, their one weight would be changed by both."""
    build("zamba", vocab_size=259).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    policy = load(tmp_path)
    perturb(policy, 0.2)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        adapted = policy.model(ids, use_cache=False).logits
        with policy.merged():
            assert (policy.model(ids, use_cache=False).logits - adapted).abs().max() <= 1e-3


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_initial_is_pi_0(tiny: Path, lora_rank: int) -> None:
    policy = load(tiny, lora_rank=lora_rank)
    responses = policy.sample(PROMPTS, 3, seeded())
    first = policy.log_prob(PROMPTS, responses)
    with policy.initial():
        assert torch.equal(policy.log_prob(PROMPTS, responses), first)
    policy.weights.keep_initial()
    for seed in range(2):
        perturb(policy, seed=seed)
        policy.weights.keep_initial()  # only the first call counts
    now = policy.log_prob(PROMPTS, responses)
    assert (now - first).abs().max() > 0.1
    with policy.initial():
        assert (policy.log_prob(PROMPTS, responses) - first).abs().max() == 0
    assert torch.equal(policy.log_prob(PROMPTS, responses), now)
    assert all(p.requires_grad for p in policy.trainable().values()) and policy.trainable()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_weights_round_trip(tiny: Path, tmp_path: Path, lora_rank: int, dtype: str) -> None:
    policy = load(tiny, lora_rank=lora_rank, dtype=dtype)
    perturb(policy)
    policy.save_weights(tmp_path / "weights")
    other = load(tiny, lora_rank=lora_rank, dtype=dtype, seed=5)
    responses = policy.sample(PROMPTS, 3, seeded())
    scores = policy.log_prob(PROMPTS, responses)
    first = other.log_prob(PROMPTS, responses)
    assert not torch.equal(first, scores)
    other.load_weights(tmp_path / "weights")
    assert_equal_weights(weights(other), weights(policy))
    assert torch.equal(other.log_prob(PROMPTS, responses), scores)
    with other.initial():
        assert torch.equal(other.log_prob(PROMPTS, responses), first)


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_only_safetensors_and_text_are_written(tiny: Path, tmp_path: Path, lora_rank: int) -> None:
    policy = load(tiny, lora_rank=lora_rank)
    policy.save_weights(tmp_path / "weights")
    policy.save_model(tmp_path / "model")
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja"}
    assert sum(file.suffix == ".safetensors" for file in files) == 2


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("lora_rank", [4, 0])
def test_the_saved_model_is_a_plain_model(tiny: Path, tmp_path: Path, lora_rank: int, dtype: str) -> None:
    policy = load(tiny, lora_rank=lora_rank, dtype=dtype)
    perturb(policy)
    before = weights(policy)
    policy.save_model(tmp_path)
    assert_equal_weights(weights(policy), before)
    saved, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert saved.dtype == policy.model.dtype
    assert saved.config.tie_word_embeddings
    ids = torch.arange(3, 30)[None]
    with torch.no_grad(), policy.merged():
        assert torch.equal(saved(ids).logits, policy.model(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == policy.tokenizer.chat_template
    assert tokenizer("Say abc<|im_end|>")["input_ids"] == policy.tokenizer("Say abc<|im_end|>")["input_ids"]
    again = load(tmp_path, dtype=dtype)
    assert same(again.sample(PROMPTS, 3, seeded()), policy.sample(PROMPTS, 3, seeded()))


@pytest.mark.parametrize("name", ["gpt2", "qwen3_moe", "laguna"])  # of laguna peft would rename keys as it reads them
def test_adapters_of_transposed_weights_and_of_experts(name: str, tmp_path: Path) -> None:
    model = build(name, vocab_size=259, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "start")
    make_tokenizer().save_pretrained(tmp_path / "start")
    policy = load(tmp_path / "start")
    perturb(policy, 0.2)
    before, ids = weights(policy), torch.arange(3, 30)[None]
    policy.sample(PROMPTS, 2, seeded())
    policy.save_model(tmp_path / "model")
    policy.save_weights(tmp_path / "adapter")
    assert_equal_weights(weights(policy), before)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    with torch.no_grad():
        adapted = policy.model(ids).logits
        assert (saved(ids).logits - adapted).abs().max() <= 1e-3
        assert (model(ids).logits - adapted).abs().max() > 0.1
        with policy.merged():
            assert torch.equal(saved(ids).logits, policy.model(ids).logits)
        other = load(tmp_path / "start", seed=5)
        other.load_weights(tmp_path / "adapter")
        assert torch.equal(other.model(ids).logits, adapted)


def test_a_model_that_peft_cannot_adapt_can_be_trained_whole(tmp_path: Path) -> None:
    build("mamba", vocab_size=259).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"MambaForCausalLM.*--lora-rank 0"):
        load(tmp_path)
    assert not load(tmp_path, lora_rank=0).shared


def test_a_generation_config_that_transformers_refuses_to_save_is_kept(tiny: Path, tmp_path: Path) -> None:
    policy = load(tiny)
    policy.model.generation_config.temperature = 0.6  # without do_sample: loads with a warning, does not save
    with pytest.raises(ValueError, match="temperature"):
        policy.model.generation_config.save_pretrained(tmp_path)
    policy.save_model(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text())["temperature"] == 0.6
    assert policy.model.generation_config.temperature == 0.6
    assert AutoModelForCausalLM.from_pretrained(tmp_path).generation_config.eos_token_id == 2


def test_saving_an_adapter_asks_no_hub(tiny: Path, tmp_path: Path, monkeypatch) -> None:
    policy = load(tiny)
    policy.weights.name = "smollm2"  # an alias: no folder of that name
    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", lambda *a, **k: pytest.fail("network"))
    policy.save_weights(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "smollm2"


def test_the_adapter_is_fixed_by_its_seed(tiny: Path) -> None:
    one, two, other = (weights(load(tiny, seed=seed)) for seed in (3, 3, 4))
    assert_equal_weights(one, two)
    assert any(not torch.equal(value, other[name]) for name, value in one.items())


# Gradient checkpointing


@pytest.mark.parametrize("lora_rank", [4, 0])
def test_recomputed_activations_give_the_same_gradients(tiny: Path, lora_rank: int) -> None:
    gradients = []
    for recompute in (False, True):
        policy = load(tiny, lora_rank=lora_rank, gradient_checkpointing=recompute)
        perturb(policy)
        assert not policy.model.training
        entered = [0]
        policy.model.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, entered=entered: entered.__setitem__(0, entered[0] + 1)
        )
        responses = policy.sample(Prompts.uniform(["a"]), 2, seeded())
        policy.log_prob(Prompts.uniform(["a"]), responses)  # nothing to recompute without gradients
        entered[0] = 0
        groups = policy.groups(Prompts.uniform(["a"]), responses)
        packed = policy.scorer.pack(groups, [(0, [0, 1])], masked=True)
        response_log_prob(policy.model, packed)[0].sum().backward()
        assert entered[0] == (2 if recompute else 1)
        gradients.append({name: p.grad for name, p in policy.trainable().items()})
    assert_equal_weights(*gradients)


def test_a_model_without_layers_to_recompute_is_refused() -> None:
    with pytest.raises(UserError, match="--gradient-checkpointing"):
        recompute_activations(torch.nn.Linear(2, 2))
