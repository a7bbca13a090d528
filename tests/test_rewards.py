from __future__ import annotations

import inspect
import math
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_tokenizer
from reference import alone, next_logits
from torch import Tensor

from srlm import rewards
from srlm.answers import answer_classes
from srlm.errors import UserError
from srlm.loop import self_reward
from srlm.policies.draws import enumerated, sampled
from srlm.policies.tabular import TabularPolicy, tilt
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.rewards.table import REWARDS, asks_model, reward_function
from srlm.types import Prompts, Rollouts

ITEMS = ["Say abc", "n", "Say something rather long"]
PROMPTS = Prompts.uniform(ITEMS)
K = 5


def rollouts(round: int = 0, p: int = 200, k: int = 8) -> Rollouts:
    log_prob = -10 * torch.rand(p, k, generator=torch.Generator().manual_seed(9))
    return Rollouts(round, Prompts.uniform(range(p)), None, log_prob, torch.full((p, k), 1 / k))


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A chat model of many EOS ids, so that its responses differ in length."""
    folder = tmp_path_factory.mktemp("short")
    model = make_model(scale=15.0)  # far from uniform, where all rewards are alike
    model.generation_config.eos_token_id = list(range(2, 40))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, **options) -> TransformerPolicy:
    return TransformerPolicy.load(str(folder), **({"dtype": "fp32", "lora_rank": 4, "max_new_tokens": 9} | options))


def drawn(policy: TransformerPolicy, k: int = K) -> Rollouts:
    responses = policy.sample(PROMPTS, k, torch.Generator().manual_seed(3))
    log_prob, entropy = policy.score(PROMPTS, responses, with_entropy=True)
    return Rollouts(0, PROMPTS, responses, log_prob, torch.full_like(log_prob, 1 / k), entropy)


def moved(policy: TransformerPolicy) -> TransformerPolicy:
    """Away from pi_0, as an update would."""
    policy.weights.keep_initial()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw))
    return policy


@pytest.fixture(scope="module")
def policy(short: Path) -> TransformerPolicy:
    return moved(load(short))


@pytest.fixture(scope="module")
def given(policy: TransformerPolicy) -> Rollouts:
    found = drawn(policy)
    assert len(set(found.responses.length.flatten().tolist())) > 3
    return found


def each(policy: TransformerPolicy, given: Rollouts, of) -> Tensor:
    """of(prompt ids, response ids) for every response, one by one."""
    rows = [[of(policy.encode(item), y) for y in given.responses.ids(p)] for p, item in enumerate(ITEMS)]
    return torch.tensor(rows)


def along(policy: TransformerPolicy, given: Rollouts, of) -> Tensor:
    """The mean of of(log pi(.|history)) over each response, from the model's own forward."""

    def mean(prompt: list[int], response: list[int]) -> float:
        return float(of(torch.log_softmax(next_logits(policy.model, prompt, response).double(), -1)).mean())

    return each(policy, given, mean)


def table(x: int = 3, y: int = 6, *lead: int) -> TabularPolicy:
    return TabularPolicy(torch.randn(*lead, x, y, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))


def on_table(policy: TabularPolicy) -> Rollouts:
    return enumerated(policy, Prompts.uniform(range(policy.logits.shape[-2])), 0, torch.Generator())


# The table of rewards


def test_every_reward_has_its_name() -> None:
    for name, reward in REWARDS.items():
        assert reward.__name__ == name
        assert inspect.getmodule(reward).__name__ == f"{rewards.__name__}.{name}"
        assert inspect.getmodule(reward).__doc__ and "[P, K]" in reward.__doc__


def test_a_name_alone_is_the_reward_itself() -> None:
    voting = {name for name in REWARDS if name.endswith("majority")}
    for name in REWARDS.keys() - voting - {"oracle", "judge", "judge_pairwise", "meta_judge"}:
        assert reward_function(name) is REWARDS[name]


# Likelihoods


def test_log_likelihood_is_what_was_scored() -> None:
    given = rollouts()
    assert REWARDS["log_likelihood"](None, given) is given.log_prob  # Eq. 1; no policy is asked


def test_inverted_is_its_opposite() -> None:
    given = rollouts()
    assert torch.equal(REWARDS["inverted"](None, given), -given.log_prob)


def test_inverted_at_beta_1_forgets_everything_in_one_round() -> None:
    policy, prompts = table(), Prompts.uniform(range(3))
    steps = self_reward(
        policy, prompts, sampler=enumerated, reward=REWARDS["inverted"], update=tilt(1.0), rounds=1, seed=0
    )
    *_, last = steps
    torch.testing.assert_close(last.policy.log_table().exp(), torch.full((3, 6), 1 / 6, dtype=torch.float64))


def test_mean_log_likelihood_is_per_token(policy: TransformerPolicy, given: Rollouts) -> None:
    expected = each(policy, given, lambda x, y: alone(policy.model, x, y) / len(y))
    torch.testing.assert_close(REWARDS["mean_log_likelihood"](policy, given), expected, atol=1e-5, rtol=1e-5)


def test_self_certainty_is_intuitors(policy: TransformerPolicy, given: Rollouts) -> None:
    words = policy.model.config.vocab_size
    expected = along(policy, given, lambda log_p: -(log_p + math.log(words)).sum(-1) / words)
    assert expected.std() > 0.05
    torch.testing.assert_close(REWARDS["self_certainty"](policy, given), expected.float(), atol=1e-4, rtol=1e-5)


def test_negative_entropy(policy: TransformerPolicy, given: Rollouts) -> None:
    expected = along(policy, given, lambda log_p: (log_p.exp() * log_p).sum(-1))
    torch.testing.assert_close(REWARDS["negative_entropy"](policy, given), expected.float(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_implicit_is_the_log_ratio_to_the_start(short: Path, lora_rank: int) -> None:
    first, now = load(short, lora_rank=0), moved(load(short, lora_rank=lora_rank))
    given = drawn(now)
    expected = each(now, given, lambda x, y: alone(now.model, x, y) - alone(first.model, x, y))
    assert expected.std() > 0.1
    torch.testing.assert_close(REWARDS["implicit"](now, given), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(now.log_prob(PROMPTS, given.responses), given.log_prob)  # pi_t is back


def test_implicit_is_zero_at_the_start(short: Path) -> None:
    start = load(short)
    assert not REWARDS["implicit"](start, drawn(start)).any()


@pytest.mark.parametrize("name", ["self_certainty", "implicit", "negative_entropy", "mean_log_likelihood"])
def test_micro_batches_change_nothing(short: Path, given: Rollouts, name: str) -> None:
    values = [
        REWARDS[name](policy, drawn(policy))
        for policy in (moved(load(short, **budget)) for budget in ({"token_budget": 1}, {"prompts_per_step": 1}, {}))
    ]
    for value in values:
        torch.testing.assert_close(value, values[0], atol=2e-5, rtol=1e-5)


# Random


def test_random_deals_each_group_its_own_scores() -> None:
    given = rollouts()
    dealt = REWARDS["random"](None, given)
    assert torch.equal(dealt.sort(-1).values, given.log_prob.sort(-1).values)
    assert not torch.equal(dealt, given.log_prob)


def test_random_deals_each_group_in_its_own_order() -> None:
    given = rollouts()
    dealt = REWARDS["random"](None, given)
    order = (dealt[:, :, None] == given.log_prob[:, None, :]).int().argmax(-1)
    assert len({tuple(row) for row in order.tolist()}) > 190  # of 200, out of 8! = 40320


def test_random_knows_nothing() -> None:
    """The correlation with the log-likelihood inside groups is 0 within 4 standard errors."""
    given = rollouts()
    x, y = (v - v.mean(-1, keepdim=True) for v in (given.log_prob, REWARDS["random"](None, given)))
    each = (x * y).sum(-1) / (x**2).sum(-1)
    assert abs(float(each.mean())) <= 4 * float(each.std()) / math.sqrt(len(each))
    assert float(each.std()) == pytest.approx(1 / math.sqrt(7), rel=0.2)  # a random permutation's: 1/sqrt(K - 1)


def test_random_is_fixed_by_the_round() -> None:
    random = REWARDS["random"]
    assert torch.equal(random(None, rollouts(3)), random(None, rollouts(3)))
    assert not torch.equal(random(None, rollouts(3)), random(None, rollouts(4)))
    state = torch.random.get_rng_state()
    random(None, rollouts(3))
    assert torch.equal(torch.random.get_rng_state(), state)


# Majority


class Said:
    """A policy whose responses are their texts."""

    def texts(self, responses: list[list[str]]) -> list[list[str]]:
        return responses


def spoken(texts: list[list[str]]) -> Rollouts:
    shape = (len(texts), len(texts[0]))
    return Rollouts(0, Prompts.uniform(ITEMS[: len(texts)]), texts, torch.zeros(shape), torch.full(shape, 1 / shape[1]))


def test_majority_is_the_share_of_the_own_answer() -> None:
    given = spoken([["Paris.", " paris", "Rome", "PARIS!"], ["1", "2", "3", "3"]])
    majority = reward_function("majority", classes=answer_classes("normalised"))
    expected = torch.tensor([[0.75, 0.75, 0.25, 0.75], [0.25, 0.25, 0.5, 0.5]])
    torch.testing.assert_close(majority(Said(), given), expected)


def test_no_answer_agrees_with_nothing_and_counts_among_the_k() -> None:
    majority = reward_function("majority", classes=answer_classes("number"))
    given = spoken([["it is 3", "well", "3.0", "hm"], ["a", "b", "c", "d"]])
    torch.testing.assert_close(majority(Said(), given), torch.tensor([[0.5, 0, 0.5, 0], [0.0] * 4]))


def test_a_failing_class_function_is_named() -> None:
    majority = reward_function("majority", classes=lambda text: 1 / len(text))
    with pytest.raises(UserError, match=r"answer classes .* failed on '' \(ZeroDivisionError"):
        majority(Said(), spoken([["a", ""]]))


def test_majority_of_an_enumerated_table_is_the_answers_probability() -> None:
    policy = table(3, 6, 2)  # two replicas
    probability = policy.log_table().exp()
    answer = [0, 1, 0, None, 1, 2]
    value = reward_function("majority", classes=lambda column: answer[column])(policy, on_table(policy))
    for column, own in enumerate(answer):
        shared = [c for c, other in enumerate(answer) if other == own and own is not None]
        torch.testing.assert_close(value[..., column], probability[..., shared].sum(-1))


def test_majority_tends_to_the_modal_answers_probability() -> None:
    """Answer-level mode: sampled shares converge at 1/sqrt(K) to those of the table, whose argmax is the modal answer,
    where the most probable response gives another."""
    policy = TabularPolicy(torch.tensor([[0.4, 0.25, 0.2, 0.15]], dtype=torch.float64).log())
    answer = "abbb"  # the mode is a, the modal answer b
    majority = reward_function("majority", classes=answer.__getitem__)
    exact = majority(policy, on_table(policy))[0]
    torch.testing.assert_close(exact, torch.tensor([0.4, 0.6, 0.6, 0.6], dtype=torch.float64))
    replicas = 400
    for k in (4, 64, 1024):
        given = sampled(replicas, k)(policy, Prompts.uniform(range(1)), 0, torch.Generator().manual_seed(k))
        value, column = majority(policy, given), given.responses.response
        share = torch.where(column == 0, value, 1 - value)  # of a, K of its estimates in each row, all equal
        error = share[:, 0] - 0.4
        deviation = math.sqrt(0.24 / k)
        assert abs(float(error.mean())) <= 4 * deviation / math.sqrt(replicas)
        assert float(error.std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * replicas))
        best = column.gather(-1, value.argmax(-1, keepdim=True))[:, 0]
        wrong = float((best == 0).double().mean())  # P(binomial share of a > 1/2), Hoeffding
        assert wrong <= math.exp(-2 * k * 0.1**2) + 4 * math.sqrt(0.25 / replicas)
    assert wrong == 0


# Tables


@pytest.mark.parametrize("draw", [enumerated, sampled(5, 4)])
def test_what_means_something_on_tables_works_there(draw) -> None:
    for policy in (table(), table(3, 6, 2)):
        given = draw(policy, Prompts.uniform(range(3)), 0, torch.Generator().manual_seed(0))
        for spec in ("log_likelihood", "random", "inverted", "majority", "log_likelihood - 2*majority"):
            value = reward_function(spec, classes=lambda column: column % 2)(policy, given)
            assert value.shape == given.log_prob.shape and value.dtype == torch.float64 and value.isfinite().all()


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        ("mean_log_likelihood", "length.*Draws"),
        ("self_certainty", "self_certainty.*TabularPolicy"),
        ("negative_entropy", "entropy.*TabularPolicy"),
        ("implicit", "initial.*TabularPolicy"),
        ("judge", "choice_log_prob.*TabularPolicy"),
        ("judge_pairwise", "choice_log_prob.*TabularPolicy"),
        ("oracle", "texts.*TabularPolicy"),
        ("log_likelihood+judge", "choice_log_prob.*TabularPolicy"),
    ],
)
def test_what_does_not_says_what_is_lacking(name: str, lacks: str) -> None:
    policy = table()
    with pytest.raises(UserError, match=lacks):
        reward_function(name, right=lambda *_: True)(policy, on_table(policy))


# Mixtures


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("0.5*log_likelihood+0.5*random", {"log_likelihood": 0.5, "random": 0.5}),
        (" log_likelihood - random ", {"log_likelihood": 1, "random": -1}),
        ("-.25*log_likelihood + -2*random", {"log_likelihood": -0.25, "random": -2}),
        ("1e-2 * random - 3e+1*log_likelihood+random", {"log_likelihood": -30, "random": 1.01}),
        ("2*random", {"random": 2}),
        ("-random", {"random": -1}),
        ("random - -random", {"random": 2}),
    ],
)
def test_mixtures_are_arithmetic(spec: str, weights: dict[str, float]) -> None:
    given = rollouts()
    expected = sum(weight * REWARDS[name](None, given).double() for name, weight in weights.items())
    value = reward_function(spec)(None, given)
    assert value.dtype == given.log_prob.dtype
    torch.testing.assert_close(value.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "spec", ["", " ", "praise", "2", "2*", "*random", "random random", "random+", "random*2", "1e999*random", "a/b"]
)
def test_what_is_no_reward_is_refused_with_the_choices(spec: str) -> None:
    with pytest.raises(UserError, match=r"there is no reward .*, expected one of log_likelihood, .*module:function"):
        reward_function(spec)


def test_one_unknown_part_is_named() -> None:
    with pytest.raises(UserError, match="no reward 'praise'"):
        reward_function("0.5*random+praise")


def test_which_rewards_take_time() -> None:
    assert not asks_model("log_likelihood") and not asks_model("majority-0.1*random")
    assert asks_model("judge") and asks_model("random+self_certainty") and asks_model("mine:own")


# The user's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_rewards.py").write_text(
        "import torch\n"
        "def double(policy, rollouts): return 2 * rollouts.log_prob.double()\n"
        "def flat(policy, rollouts): return rollouts.log_prob[:, 0]\n"
        "def number(policy, rollouts): return 1.0\n"
        "def hole(policy, rollouts): return rollouts.log_prob / 0 * 0\n"
        "def broken(policy, rollouts): raise ZeroDivisionError('mine')\n"
        "seven = 7\n"
    )


def test_a_function_of_the_users(own: None) -> None:
    given = rollouts()
    value = reward_function("own_rewards:double")(None, given)
    assert torch.equal(value, 2 * given.log_prob) and value.dtype == torch.float32
    mixed = reward_function("own_rewards:double - 2*log_likelihood")(None, given)
    assert not mixed.any()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("flat", r"returned a tensor \[200\], expected a tensor \[200, 8\]"),
        ("number", r"returned a float, expected a tensor \[200, 8\]"),
        ("hole", "returned .* of finite numbers"),
    ],
)
def test_what_it_returns_must_be_a_reward(own: None, name: str, said: str) -> None:
    with pytest.raises(UserError, match=f"the reward own_rewards:{name} {said}"):
        reward_function(f"own_rewards:{name}")(None, rollouts())


def test_what_it_raises_passes_through(own: None) -> None:
    with pytest.raises(ZeroDivisionError, match="mine"):
        reward_function("own_rewards:broken")(None, rollouts())


@pytest.mark.parametrize("name", ["no_such_module:f", "own_rewards:nothing", "own_rewards:seven"])
def test_what_is_no_function_is_refused_at_once(own: None, name: str) -> None:
    with pytest.raises(UserError, match=f"the reward {name}"):
        reward_function(name)


# What is needed, and the oracle


def test_the_oracle_knows() -> None:
    answers = [("Paris",), ("3",)]
    oracle = reward_function("oracle", right=lambda number, text: text in answers[number])
    value = oracle(Said(), spoken([["Paris", "3", "Rome"], ["Paris", "3", "4"]]))
    assert value.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("spec", ["oracle+random", "1*oracle", "0.1*oracle", "random-oracle", "-oracle", " oracle"])
def test_the_oracle_does_not_hide(spec: str) -> None:
    with pytest.raises(UserError, match="uses labels: ask for it by exactly that name"):
        reward_function(spec, right=lambda *_: True)


def test_the_oracle_needs_answers_and_majority_classes() -> None:
    with pytest.raises(UserError, match="oracle needs prompts with answers"):
        reward_function("oracle")
    for spec in ("majority", "random+majority"):
        with pytest.raises(UserError, match="majority needs answer classes"):
            reward_function(spec)
