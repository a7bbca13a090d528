from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ROWS, TREES, VOCABULARY, WINDOW, alone, build, first_above, next_logits
from scipy.stats import chisquare
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.mistral import modeling_mistral

from srlm.errors import UserError
from srlm.policies.transformer import admission, respond
from srlm.policies.transformer.admission import Unit
from srlm.policies.transformer.continuation import reads_padding, shares_prompts
from srlm.policies.transformer.respond import Drawn
from srlm.policies.transformer.sample import BLOCK, Decoding, inverse_cdf, next_word, nucleus

LLAMA = make_model(vocab=VOCABULARY)
ENDS = frozenset(range(2, 14))  # many ends, so that responses of one batch differ in length
PROMPTS = [[5, 6, 7], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30], [40], [50, 51, 52, 53, 54, 55]]
LAST = 1 - 2**-53  # the largest uniform


def uniforms(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SHARING = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3")  # of those that the tests build


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniform: Tensor | None,
    num_samples: int,
    how: Decoding,
    budget: float = math.inf,
    shared: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """tokens [P, K, T], length and finished [P, K]; all in one batch unless there is a budget."""
    drawn = Drawn(len(prompts), num_samples, how.max_new_tokens)
    units = [Unit(i, 0, num_samples) for i in range(len(prompts))]
    draws = None if uniform is None else lambda numbers: uniform[list(numbers)]
    respond.decode(model, prompts, units, draws, how, drawn, budget=budget, refill=True, shared=shared)
    return drawn.tokens, drawn.length, drawn.finished


def taken(drawn: tuple[Tensor, Tensor, Tensor], row: int) -> list[tuple[list[int], bool]]:
    """[K] (ids, finished) of one prompt."""
    tokens, length, finished = drawn
    return [
        (ids[:n], end)
        for ids, n, end in zip(tokens[row].tolist(), length[row].tolist(), finished[row].tolist(), strict=True)
    ]


def pooled_p_value(observed: Counter, expected: Mapping) -> float:
    """Chi-square, responses expected fewer than 5 times taken together."""
    total = sum(observed.values())
    assert observed.keys() <= expected.keys()
    rare = [y for y, p in expected.items() if p * total < 5]
    common = [y for y in expected if y not in set(rare)]
    counts = [observed[y] for y in common] + [sum(observed[y] for y in rare)] * bool(rare)
    shares = [expected[y] for y in common] + [sum(expected[y] for y in rare)] * bool(rare)
    return float(chisquare(counts, np.array(shares) / sum(shares) * total).pvalue)


# The inverse CDF


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([1, 2, 97, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17]),
    st.floats(0, LAST),
    st.floats(0.1, 30),
    st.integers(0, 2**32),
)
def test_inverse_cdf_is_the_first_word_above(words: int, uniform: float, spread: float, seed: int) -> None:
    logits = spread * torch.randn(words, generator=torch.Generator().manual_seed(seed))
    mass = np.exp(logits.double().numpy() - float(logits.max()))
    cdf = mass.cumsum() / mass.sum()
    drawn = int(inverse_cdf(logits[None], torch.tensor([uniform], dtype=torch.float64)))
    # fp32 masses: the CDF is known to about 1e-7
    assert cdf[drawn] > uniform - 1e-6
    assert drawn == 0 or cdf[drawn - 1] <= uniform + 1e-6


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.25, 0.5, 0.75, LAST])
@pytest.mark.parametrize("words", [7, BLOCK, 2 * BLOCK + 3])
def test_a_word_of_probability_zero_is_never_drawn(words: int, uniform: float) -> None:
    draw = random.Random(words)
    for _ in range(40):
        alive = sorted(draw.sample(range(words), draw.choice([1, 2, 5])))
        logits = torch.full((words,), -torch.inf)
        logits[alive] = torch.tensor([draw.uniform(-5, 5) for _ in alive])
        hidden = torch.where(logits.isinf(), -1000.0, logits)  # underflows: as good as zero
        for row in (logits, hidden):
            word = int(inverse_cdf(row[None], torch.tensor([uniform], dtype=torch.float64)))
            assert word in alive
            if uniform == 0.0:
                assert word == alive[0]
            if uniform == LAST:
                assert word == alive[-1]


def test_a_block_boundary_is_no_way_out() -> None:
    """Uniforms a rounding error away from where one block ends and the next begins, with words of probability zero."""
    draw = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(1500, 2 * BLOCK + 40, generator=draw)
    zero = torch.zeros_like(logits, dtype=torch.bool)
    for start in (0, BLOCK, 2 * BLOCK):
        zero[:, start : start + 9] = True
    logits[zero] = -torch.inf
    mass = torch.exp(logits - logits.amax(-1, keepdim=True)).double()
    total = mass.sum(-1)
    for end in (BLOCK, 2 * BLOCK):
        edge = (mass[:, :end].sum(-1) / total).numpy()
        for uniform in (np.nextafter(edge, 0), edge, np.nextafter(edge, 1)):
            words = inverse_cdf(logits, torch.from_numpy(uniform))
            assert not zero.gather(1, words[:, None]).any()


def test_extreme_uniforms_reach_the_ends() -> None:
    logits = torch.zeros(2, 2 * BLOCK + 3)
    assert inverse_cdf(logits, torch.tensor([0.0, LAST], dtype=torch.float64)).tolist() == [0, 2 * BLOCK + 2]


def test_equal_words_split_the_unit_interval_evenly() -> None:
    words = BLOCK + 8  # a power of two times odd: k / words is not exact, its middle is unambiguous
    middles = (torch.arange(words, dtype=torch.float64) + 0.5) / words
    assert inverse_cdf(torch.zeros(words, words), middles).tolist() == list(range(words))


def test_inverse_cdf_frequencies() -> None:
    logits = torch.linspace(-3, 1, BLOCK + 90)
    probability = torch.softmax(logits.double(), -1)
    words = inverse_cdf(logits.expand(12_000, -1), uniforms(12_000))
    assert pooled_p_value(Counter(words.tolist()), dict(enumerate(probability.tolist()))) > 1e-3


def test_nucleus_is_the_smallest_set_that_reaches_p() -> None:
    logits = torch.log(torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.25, 0.25, 0.25, 0.25]]))
    assert (nucleus(logits, 0.79) > -torch.inf).tolist()[0] == [False, True, False, True]
    assert (nucleus(logits, 0.81) > -torch.inf).tolist()[0] == [True, True, False, True]
    assert (nucleus(logits, 0.01) > -torch.inf).sum(-1).tolist() == [1, 1]
    assert (nucleus(logits, 0.49) > -torch.inf).sum(-1).tolist() == [1, 2]
    assert (nucleus(logits, 1e-300) > -torch.inf).sum(-1).tolist() == [1, 1]  # 0 in fp32
    kept = nucleus(logits, 0.79)
    assert torch.equal(kept[kept > -torch.inf], logits[kept > -torch.inf])


# Decoding against the model's own forward


def replay(model: PreTrainedModel, prompt: Sequence[int], uniform: Tensor, how: Decoding) -> tuple[list[int], bool]:
    """Sampling by definition: a whole forward per token, no cache, no batch, the CDF summed word by word."""
    ids: list[int] = []
    while len(ids) < how.max_new_tokens:
        logits = next_logits(model, prompt, [*ids, 0])[-1].double()
        ids.append(first_above(torch.softmax(logits, -1).numpy(), float(uniform[len(ids)])))
        if ids[-1] in how.eos:
            return ids, True
    return ids, False


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("name", [*TREES, *ROWS])
def test_decoding_is_sampling_by_definition(name: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left padding, the cache, windows, and rows that leave the batch or join it change no token; nor do looking for
    ends every few words and one copy of a prompt for all that read it."""
    model, k, how = build(name), 3, Decoding(12, ENDS)
    if shared and not shares_prompts(model):
        assert name not in SHARING
        pytest.skip("its responses cannot read one copy of their prompt")
    uniform = uniforms(len(PROMPTS), k, how.max_new_tokens, seed=3)
    drawn = decode(model, PROMPTS, uniform, k, how, shared=shared)
    monkeypatch.setitem(admission.LOOK_EVERY, "cpu", 5)
    for budget in (k * 25, 2 * k * 25):
        for part, whole in zip(decode(model, PROMPTS, uniform, k, how, budget, shared), drawn, strict=True):
            assert torch.equal(part, whole)
    lengths = set()
    for row, prompt in enumerate(PROMPTS):
        expected = [replay(model, prompt, uniform[row, i], how) for i in range(k)]
        assert taken(drawn, row) == expected
        lengths |= {len(ids) for ids, _ in expected}
    assert len(lengths) > 2, "all rows ended together: the test saw no batch shrink"
    assert 0 < drawn[2].float().mean() < 1


def test_stop_strings_are_seen_every_few_words_as_at_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows may have ended before the next look, as at the end of any batch on an accelerator."""
    how = Decoding(12, frozenset(), stopped=lambda ids: ids[-1] % 3 == 0, window=1, stop=("a",))
    uniform = uniforms(len(PROMPTS), 3, how.max_new_tokens, seed=3)
    at_each = decode(LLAMA, PROMPTS, uniform, 3, how)
    monkeypatch.setitem(respond.LOOK_EVERY, "cpu", 12)
    for part, whole in zip(decode(LLAMA, PROMPTS[:1], uniform[:1], 3, how), at_each, strict=True):
        assert torch.equal(part, whole[:1])
    assert at_each[2][0].all(), "some row did not end: the test saw no batch whose rows all ended"


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "gpt2"])
def test_greedy_is_transformers_greedy(name: str) -> None:
    model, how = build(name), Decoding(14, ENDS)
    drawn = decode(model, PROMPTS, None, 1, how)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        whole = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=how.max_new_tokens,
            eos_token_id=sorted(ENDS),
            pad_token_id=0,
        )
        own = whole[0, len(prompt) :].tolist()
        assert taken(drawn, row) == [(own, own[-1] in ENDS)]


@pytest.mark.parametrize("shared", [False, True])
def test_a_response_depends_on_its_own_draws_alone(shared: bool) -> None:
    k, how = 4, Decoding(16, ENDS)
    uniform = uniforms(len(PROMPTS), k, how.max_new_tokens)
    together = decode(LLAMA, PROMPTS, uniform, k, how, shared=shared)
    for order in itertools.islice(itertools.permutations(range(len(PROMPTS))), 0, None, 7):
        for size in (1, 2, 3):
            chosen = list(order[:size])
            part = decode(LLAMA, [PROMPTS[i] for i in chosen], uniform[chosen], k, how, shared=shared)
            for place, row in enumerate(chosen):
                assert taken(part, place) == taken(together, row)
    first = decode(LLAMA, PROMPTS, uniform[:, :1], 1, how, shared=shared)
    for row in range(len(PROMPTS)):
        assert taken(first, row) == taken(together, row)[:1]


@pytest.mark.parametrize(
    ("name", "shared"),
    [("llama", False), ("llama", True), ("gemma3_text", False), ("gemma3_text", True), ("mamba", False)],
)
def test_prompts_join_as_rows_end(name: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where states can be joined a batch stays as full as there is room; elsewhere the next waits for its end."""
    model, how, begun = build(name), Decoding(16, ENDS), []
    prompts = [[(7 * i + j) % VOCABULARY for j in range(1 + i % 9)] for i in range(24)]
    uniform, real = uniforms(len(prompts), 2, how.max_new_tokens), respond.Batch.admit

    def admit(batch: respond.Batch, units: Sequence[Unit]) -> None:
        begun.append((len(batch), 2 * len(units)))
        real(batch, units)

    together = decode(model, prompts, uniform, 2, how, shared=shared)
    monkeypatch.setattr(respond.Batch, "admit", admit)
    monkeypatch.setattr(admission, "REFILL", 0.25)
    parts = decode(model, prompts, uniform, 2, how, 12 * 25, shared)
    assert all(torch.equal(part, whole) for part, whole in zip(parts, together, strict=True))
    assert max(map(sum, begun)) <= 18 and len(begun) > 2
    assert any(before for before, _ in begun) == (name != "mamba")


def test_a_longer_limit_only_goes_on_where_a_response_was_cut() -> None:
    uniform = uniforms(len(PROMPTS), 4, 16)
    short, long = (decode(LLAMA, PROMPTS, uniform, 4, Decoding(limit, ENDS)) for limit in (6, 16))
    cut = 0
    for row in range(len(PROMPTS)):
        for (ids, finished), (more, _) in zip(taken(short, row), taken(long, row), strict=True):
            assert more[: len(ids)] == ids
            assert (more == ids) == finished or not finished
            assert finished or len(ids) == 6
            cut += not finished
    assert cut > 0


def test_only_the_last_token_ends_a_response() -> None:
    drawn = decode(LLAMA, PROMPTS, uniforms(len(PROMPTS), 50, 12), 50, Decoding(12, ENDS))
    seen = Counter()
    for row in range(len(PROMPTS)):
        for ids, finished in taken(drawn, row):
            assert not ENDS & set(ids[:-1])
            assert finished == (ids[-1] in ENDS)
            assert finished or len(ids) == 12
            seen[ids[-1] if finished else -1] += 1
    assert len(seen) > 3 and seen[-1] > 0  # several of the ends occur, and so do cuts


def test_an_end_with_the_last_token_allowed_is_no_cut() -> None:
    uniform = uniforms(1, 40, 12)
    ended = [
        len(ids) for ids, finished in taken(decode(LLAMA, PROMPTS[:1], uniform, 40, Decoding(12, ENDS)), 0) if finished
    ]
    limit = max(ended)
    again = taken(decode(LLAMA, PROMPTS[:1], uniform, 40, Decoding(limit, ENDS)), 0)
    assert any(len(ids) == limit and finished for ids, finished in again)
    assert any(len(ids) == limit and not finished for ids, finished in again)


# Frequencies


def whole_distribution(model: PreTrainedModel, prompt: list[int], end: int, words: int) -> dict[tuple[int, ...], float]:
    """pi(y|x) of every response of at most two tokens."""
    every = [(end,), *((a, b) for a in range(words) if a != end for b in range(words))]
    return {y: math.exp(alone(model, prompt, list(y))) for y in every}


def test_samples_follow_the_models_own_distribution() -> None:
    words, end = 9, 2
    model = make_model(vocab=words, scale=3.0)
    expected = whole_distribution(model, [5, 3], end, words)
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    drawn = decode(model, [[5, 3]], uniforms(1, 6000, 2, seed=8), 6000, Decoding(2, frozenset({end})))
    observed = Counter(tuple(ids) for ids, _ in taken(drawn, 0))
    assert pooled_p_value(observed, expected) > 1e-3
    # and the test could have failed: another distribution over the same responses is rejected
    sharper = {y: p**1.2 for y, p in expected.items()}
    mass = sum(sharper.values())
    assert pooled_p_value(observed, {y: p / mass for y, p in sharper.items()}) < 1e-6


@pytest.mark.parametrize(("temperature", "top_p"), [(0.6, 1.0), (1.7, 1.0), (1.0, 0.7), (0.8, 0.9)])
def test_temperature_and_top_p_shape_the_draws(temperature: float, top_p: float) -> None:
    words = 9
    model = make_model(vocab=words, scale=3.0)
    p = torch.softmax(next_logits(model, [5, 3], [0])[0].double() / temperature, -1)
    ranked = sorted(range(words), key=lambda w: -p[w])
    kept = [w for i, w in enumerate(ranked) if sum(float(p[v]) for v in ranked[:i]) < top_p]
    assert (len(kept) < words) == (top_p < 1)
    expected = {(w,): float(p[w] / p[kept].sum()) for w in kept}
    how = Decoding(1, frozenset(), temperature, top_p)
    drawn = decode(model, [[5, 3]], uniforms(1, 4000, 1, seed=9), 4000, how)
    assert pooled_p_value(Counter(tuple(ids) for ids, _ in taken(drawn, 0)), expected) > 1e-3


def test_in_the_cold_the_most_probable_word_is_drawn() -> None:
    logits = 30 * torch.randn(4, 1100, generator=torch.Generator().manual_seed(0))
    for temperature in (1e-3, 1e-38, 1e-300):
        drawn = next_word(logits, uniforms(4), Decoding(1, frozenset(), temperature=temperature))
        assert torch.equal(drawn, logits.argmax(-1))


def test_a_model_without_a_cache_that_branches_is_refused() -> None:
    config = AutoConfig.for_model(
        "rwkv",
        vocab_size=VOCABULARY,
        hidden_size=32,
        attention_hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="RwkvForCausalLM keeps its state"):
        decode(model, [[1, 2]], None, 1, Decoding(3, ENDS))


def test_padding_is_read_or_not() -> None:
    assert reads_padding(LLAMA) and reads_padding(build("mamba"))
    assert not reads_padding(build("bart"))
    assert reads_padding(make_model(vocab=VOCABULARY).bfloat16())
    sharp = make_model(
        vocab=VOCABULARY
    ).bfloat16()  # as training leaves one: log-probs are large, and so are their errors
    with torch.no_grad():
        sharp.model.norm.weight.mul_(64)
    assert reads_padding(sharp)


@pytest.mark.parametrize("name", ["codegen", "jetmoe"])
def test_an_attention_of_its_own_shares_nothing_however_little_it_matters(name: str) -> None:
    """One never asks for ours, one repeats keys in another order; in bf16 a probe may take that for rounding."""
    assert not shares_prompts(build(name, scale=2.0).bfloat16())


def test_a_cache_that_is_not_the_text_is_refused() -> None:
    """Moshi looks through its window when it goes on from a cache, and past it otherwise."""
    for window in (WINDOW, 200):  # inside which a short probe would stay
        with pytest.raises(UserError, match="MoshiForCausalLM goes on from its cache otherwise than from the whole"):
            reads_padding(build("moshi", sliding_window=window))


@pytest.mark.parametrize("name", ["mistral", "gemma3_text"])
def test_a_window_that_is_seen_past_once_prompts_and_responses_are_long(name: str) -> None:
    """Longer than what a probe reads; layers keep it in several places."""
    model, uniform, how = build(name, sliding_window=64), uniforms(2, 2, 40), Decoding(40, frozenset())
    told = str(model.config), str([vars(module) for module in model.modules() if hasattr(module, "sliding_window")])
    assert shares_prompts(model) and reads_padding(model)
    assert told == (str(model.config), str([vars(m) for m in model.modules() if hasattr(m, "sliding_window")]))
    prompts = [[(7 * i * i + 3) % VOCABULARY for i in range(size)] for size in (90, 50)]
    for shared in (False, True):
        drawn = decode(model, prompts, uniform, 2, how, shared=shared)
        for row, prompt in enumerate(prompts):
            for k, (ids, _) in enumerate(taken(drawn, row)):
                log_p = torch.softmax(next_logits(model, prompt, ids).double(), -1).numpy()
                assert ids == [first_above(p, float(u)) for p, u in zip(log_p, uniform[row, k], strict=True)]


def test_a_window_of_which_neither_cache_nor_attention_is_told_shares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As models that bring their own code may have it: in the mask alone."""
    model, real = build("mistral", sliding_window=64), ALL_ATTENTION_FUNCTIONS.get_interface

    def untold(*which: Any) -> Any:
        return lambda *given, sliding_window=None, **more: real(*which)(*given, **more)

    assert shares_prompts(model)
    monkeypatch.setattr(modeling_mistral, "ALL_ATTENTION_FUNCTIONS", SimpleNamespace(get_interface=untold))
    monkeypatch.setattr(modeling_mistral, "DynamicCache", lambda config: DynamicCache())
    assert reads_padding(model) and not shares_prompts(model)
