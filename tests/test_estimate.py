"""What a run will cost: counts against real models, tensors and caches, and the command."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import math
import re
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from support import SETTINGS, command, refused, train_words, words
from torch.utils.flop_counter import FlopCounterMode

from srlm import SelfRewardConfig, UserError
from srlm.estimate import Rates, estimate, workload
from srlm.estimate.decoding import Held, decoded, kept
from srlm.estimate.memory import memory
from srlm.estimate.rates import ACCELERATORS, of_accelerator
from srlm.estimate.rates import given as given_rates
from srlm.estimate.stages import learning, sampling, scoring, whole
from srlm.estimate.view import lines, quantity
from srlm.estimate.workload import Workload, laid_out
from srlm.policies.transformer import admission, anatomy, respond
from srlm.policies.transformer.admission import Unit, units_of
from srlm.policies.transformer.anatomy import of_config, shape_of
from srlm.policies.transformer.continuation import Continuation
from srlm.policies.transformer.fold import folded
from srlm.policies.transformer.layout.group import Group
from srlm.policies.transformer.layout.pack import pack
from srlm.policies.transformer.layout.tree import build_tree
from srlm.policies.transformer.limits import decoded_tokens
from srlm.policies.transformer.load.adapters import with_lora
from srlm.policies.transformer.log_prob import decoder_of, response_log_prob
from srlm.policies.transformer.policy import TransformerPolicy
from srlm.policies.transformer.sample import Decoding
from srlm.policies.transformer.shape import Shape
from srlm.policies.transformer.update import MasterAdamW, Optimisation
from srlm.training import beforehand
from srlm.training.beforehand import foreseen
from srlm.training.sizes_table import models

SIZES = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL = SIZES | {"intermediate_size": 64, "num_key_value_heads": 2}
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL),
    "tied": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "qwen2": transformers.Qwen2Config(**SMALL),
    "gemma3": transformers.Gemma3TextConfig(
        **SMALL, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
    ),
    "olmo2": transformers.Olmo2Config(**SMALL),
    "phi": transformers.PhiConfig(**SMALL),
    "gpt2": transformers.GPT2Config(vocab_size=259, n_embd=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
}
TOKENS = 64
DOC = Path(__file__).parents[1] / "docs" / "scaling.md"
LIKE = {"smollm2": "SmolLM2 135M", "1.5B": "Qwen2.5 1.5B", "7B": "Qwen2.5 7B", "70B": "Llama 3.1 70B"}
CONFIG = SelfRewardConfig(num_samples=4, max_new_tokens=12, held_out_samples=3, token_budget=256, epochs=2)


def shape(name: str = "llama", rank: int = 4, dtype: torch.dtype = torch.float32) -> Shape:
    return shape_of(name, of_config(name, copy.deepcopy(FAMILIES[name]), dtype, rank=rank))


def real(name: str, rank: int = 0, **options) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(FAMILIES[name]), **options).eval()
    return with_lora(model, rank=rank, alpha=None, gain=True, seed=0)[0] if rank else model


def work(prompts: int = 6, length: int = 20, **changes) -> Workload:
    return workload(dataclasses.replace(CONFIG, **changes), [length] * prompts, [length] * 2)


# A model's shape, by its config alone


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_real_model(name: str, rank: int) -> None:
    model, found = real(name, rank), shape(name, rank)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    adapter = sum(p.numel() for key, p in model.named_parameters() if "lora_" in key)
    assert found.parameters == real(name).num_parameters()
    assert found.adapter == adapter
    # The real adapter trains a final norm's bias too, where there is one.
    assert found.trained <= trained <= found.trained + found.hidden
    assert shape_of(name, model).parameters == found.parameters  # what is loaded is the same


@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_holds_what_is_counted(name: str) -> None:
    model = real(name)
    with torch.no_grad():
        cache = decoder_of(model)(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert shape(name).cached(TOKENS) == pytest.approx(held, rel=0.02)  # a window keeps one token less


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("rank", [0, 4])
def test_flops_of_a_pass_are_those_that_torch_counts(name: str, rank: int) -> None:
    model, found = real(name, rank, attn_implementation="eager"), shape(name, rank)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        decoder_of(model)(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    counted = counter.get_total_flops()
    mine = 2 * (TOKENS * found.cost.token + TOKENS**2 * found.cost.pair)
    assert mine == pytest.approx(counted, rel=0.02)


def test_experts_that_are_asleep_are_not_multiplied() -> None:
    config = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=1)
    all_awake = transformers.MixtralConfig(**SMALL, num_local_experts=4, num_experts_per_tok=4)
    one, four = (shape_of("m", of_config("m", c, torch.float32, rank=0)) for c in (config, all_awake))
    experts = 2 * 4 * 3 * 32 * 64
    assert one.parameters == four.parameters
    assert four.cost.token - one.cost.token == 0.75 * experts


MIXTURES = {
    "mixtral": transformers.MixtralConfig(**SMALL, num_local_experts=4),
    "qwen3_moe": transformers.Qwen3MoeConfig(
        **SMALL, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8
    ),
    "phimoe": transformers.PhimoeConfig(**SMALL, num_local_experts=4),
    "llama4_text": transformers.Llama4TextConfig(**SMALL, num_local_experts=4, intermediate_size_mlp=64, head_dim=8),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_lora_lies_on_experts_as_in_the_real_model(name: str) -> None:
    """Routers are left alone on the meta device, too, and what is folded is what folding changes."""
    unreal = of_config(name, copy.deepcopy(MIXTURES[name]), torch.float32, rank=4)
    found = shape_of(name, unreal)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(MIXTURES[name])).eval()
    model = with_lora(model, rank=4, alpha=None, gain=False, seed=0)[0]
    assert [key for key, _ in unreal.named_parameters()] == [key for key, _ in model.named_parameters()]
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_B" in key:
                parameter.normal_()
    before = {key: parameter.detach().clone() for key, parameter in model.named_parameters()}
    with folded(layers):
        changed = sum(p.numel() for key, p in model.named_parameters() if not torch.equal(p, before[key]))
    assert (found.folded, found.rank) == (changed, 4)
    assert found.adapter == sum(p.numel() for key, p in model.named_parameters() if "lora_" in key)


def test_what_is_guessed_is_said() -> None:
    made, mixture = work(), MIXTURES["mixtral"]
    found = shape_of("m", of_config("m", copy.deepcopy(mixture), torch.float32, rank=4))
    for one, guessed in ((found, True), (shape(), False)):
        said = estimate(one, made, None, device="x", cpu=True, room=None).assumed
        assert any("keeps is guessed" in line for line in said) == guessed


def test_layers_that_cannot_be_laid_out_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no meta tensors")

    monkeypatch.setattr(anatomy, "with_lora", broken)
    with pytest.raises(UserError, match=r"cannot lay out LoRA layers in model llama: no meta tensors; .*--lora-rank 0"):
        shape()


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_backward_pass_keeps_is_counted_without_weights(name: str, rank: int) -> None:
    model, found = real(name, rank), shape(name, rank)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, tuple[torch.Tensor, int]] = {}

    def look(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = value, storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(look, lambda value: value):
        output = decoder_of(model)(input_ids=torch.zeros(1, TOKENS, dtype=torch.long), use_cache=False)
    assert output.last_hidden_state.requires_grad
    assert found.saved == pytest.approx(sum(size for _, size in kept.values()) / TOKENS, rel=0.15)


def test_bytes_follow_the_dtype() -> None:
    wide, narrow = shape(), shape(dtype=torch.bfloat16)
    assert (wide.size, narrow.size) == (4, 2)
    assert narrow.cache == wide.cache / 2
    assert wide.saved / 2 <= narrow.saved < wide.saved


# Work


def test_batches_are_those_that_scoring_cuts() -> None:
    found = laid_out([20] * 6, 4, work(), shape())
    model = make_model()
    from accelerate import PartialState

    from srlm.policies.transformer.room import Room
    from srlm.policies.transformer.score import Scorer

    scorer = Scorer(model, PartialState(cpu=True), trees=True, prompts_per_step=4, room=Room(256))
    groups = [Group.of([0] * 20, [[i] * 12 for i in range(4)]) for _ in range(6)]
    cut = [b for step in scorer.steps(range(6)) for share in scorer.shares(groups, step) for b in share.batches]
    assert len(found.batches) * found.times == len(cut)
    assert sum(b.padded for b in found.batches) == 6 * (20 + 4 * 11)
    assert sum(b.edges for b in found.batches) == 6 * 4 * 12


@given(st.integers(1, 300), st.integers(1, 16), st.integers(1, 5))
@settings(max_examples=30)
def test_many_prompts_are_as_much_work_as_each_of_them_alone(prompts: int, step: int, devices: int) -> None:
    made = dataclasses.replace(work(), step=step, devices=devices)
    one = laid_out([20] * prompts, 4, made, shape_once())
    edges = sum(b.edges for b in one.batches) * one.times
    least = prompts * 4 * 12 / devices
    assert least * 0.9 <= edges <= least * devices * (1 + 1e-9)
    assert one.steps * one.times == pytest.approx(math.ceil(prompts / step), rel=1e-6)


def shape_once(kept: list[Shape] = []) -> Shape:  # noqa: B006
    if not kept:
        kept.append(shape())
    return kept[0]


@pytest.mark.parametrize(("name", "rank"), [("tied", 4), ("llama", 0), ("gpt2", 4)])
def test_flops_of_learning_are_those_that_torch_counts(name: str, rank: int) -> None:
    model = real(name, rank, attn_implementation="eager")
    if not rank:
        model.requires_grad_(True)
    group = Group.of([0] * 20, [[i] * 12 for i in range(4)])
    packed = pack([build_tree(group)], masked=True)
    with FlopCounterMode(display=False) as counter:
        response_log_prob(model, packed)[0].sum().backward()
    found = learning(laid_out([20], 4, work(), shape(name, rank)), shape(name, rank), work())
    # Eager attention goes back twice where a kernel that forms no matrix takes 2.5 passes.
    assert found.flops == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_lengths_have_the_mean_that_is_expected() -> None:
    made = dataclasses.replace(work(), longest=64, expected=20.0)
    assert made.alive.sum() == pytest.approx(20, abs=1e-6)
    drawn = made.lengths(4000)
    assert sum(drawn) / 4000 == pytest.approx(20, abs=1.0)
    assert max(drawn) <= 64
    assert set(work().lengths(50)) == {12}


@pytest.mark.parametrize(("a_round", "lengths"), [(None, (12, 4, 8, 4, 12)), (1, (8, 4, 12)), (0, (4, 12))])
def test_prompts_that_a_round_writes_are_prompts_of_it(a_round, lengths) -> None:
    """As long as those that are given; beside them, or alone."""
    config = dataclasses.replace(CONFIG, written_prompts=2, prompts_per_round=a_round)
    assert workload(config, [12, 4, 8], []).prompts == lengths


def test_a_quantity_has_the_unit_of_what_is_shown() -> None:
    assert [quantity(v, "B") for v in (1.234e12, 999.7e9, 999.4e9, 1e6, 999.96, 0.0)] == [
        *("1.23 TB", "1 TB", "999 GB", "1 MB", "1 kB", "0 B")
    ]


def test_sampling_feeds_every_token_but_the_last_once() -> None:
    found, made = shape(), work()
    spent = sampling([20] * 6, 4, found, made, cpu=True)
    fed = 6 * 4 * 11
    linear = 2 * fed * (found.plain + found.cost.head)
    seen = 2 * found.cost.pair * 6 * 4 * sum(20 + t for t in range(1, 12))
    assert spent.decode == pytest.approx(linear + seen)
    assert spent.weights == pytest.approx(11 * (found.parameters - found.table) * 4)


@pytest.mark.parametrize(
    ("look", "shared", "most"), [(1, False, None), (8, False, None), (1, True, None), (1, True, 7), (1, True, 2)]
)
def test_rows_are_begun_and_left_as_in_a_run(
    look: int, shared: bool, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real decoder, told where to end each response, takes the same steps of as many rows and slots."""
    made = dataclasses.replace(work(), longest=16, expected=6.0, budget=32)
    sizes = [3, 9, 5, 9, 4, 7, 3, 8, 5]
    if most is not None:  # of whose logits there is room
        monkeypatch.setattr(admission, "MOST_LOGITS", 259 * (most + 1) - 1)
    said = decoded(sizes, 3, made, cpu=look == 1, shared=shared, vocabulary=259)
    assert any(one.before for one in said.begun) and said.times == 1
    assert most is None or said.rows <= most
    ends = made.lengths(len(sizes) * 3, seed=3)
    steps: list[tuple[int, int]] = []
    admitted: list[tuple[int, int, int]] = []
    feed, admit, look_at = Continuation.feed, respond.Batch.admit, respond.Batch._look

    def fed(self: Continuation, word: torch.Tensor) -> None:
        feed(self, word)
        past: Any = self.past
        slots = (past._size[past._prompt] + past._said).max() if shared else past._mask.shape[1]
        steps.append((len(word), int(slots)))

    def begun(self: respond.Batch, units: list[Unit]) -> None:
        before = len(self)
        admit(self, units)
        admitted.append((len(units), before, len(self)))

    def ended(self: respond.Batch, words: torch.Tensor) -> torch.Tensor:
        """Word 1 where a response is as long as it is to be, else 2."""
        last = torch.tensor([ends[i] for i in self._response.tolist()])
        at = self._step + torch.arange(len(words))[:, None]
        return look_at(self, torch.where(at + 1 == last, 1, 2))

    monkeypatch.setattr(Continuation, "feed", fed)
    monkeypatch.setattr(respond.Batch, "admit", begun)
    monkeypatch.setattr(respond.Batch, "_look", ended)
    monkeypatch.setitem(respond.LOOK_EVERY, "cpu", look)
    prompts = [[5] * size for size in sorted(sizes)]
    drawn = respond.Drawn(len(prompts), 3, 16)
    rows, budget = math.inf if most is None else most, decoded_tokens(32, cpu=look == 1)
    units = [u for i, p in enumerate(prompts) for u in units_of(i, len(p), 3, 16, budget, shared=shared, most=rows)]
    how = Decoding(16, frozenset({1}))
    respond.decode(make_model(), prompts, units, None, how, drawn, budget=budget, refill=True, shared=shared)
    assert drawn.length.flatten().tolist() == ends
    assert admitted == [(one.prompts, one.before, one.rows) for one in said.begun]
    assert steps == [(one.rows, one.slots + t) for one in said.fed for t in range(one.steps)]


@pytest.mark.parametrize(("name", "words"), [("llama", 16), ("tied", 40), ("llama", 600), ("gemma3", 40)])
def test_one_copy_of_a_prompt_takes_what_is_foreseen(name: str, words: int) -> None:
    found = shape(name, rank=0)
    past = Continuation(real(name), [[5] * size for size in (3, 9, 5)], 4, shared=True)
    with torch.no_grad():
        for _ in range(words):
            past.feed(torch.full((12,), 7))
    assert past.past.nbytes == kept(found, Held(3, 9, 12, words))
    # rows that have gone leave their room behind, prompts that nobody goes on from do not
    past.keep(torch.tensor([1, 9, 10]))
    assert past.past.nbytes == kept(found, Held(2, 5, 12, words))


def test_seconds_are_work_over_rates() -> None:
    found, made = shape(), work()
    rates = Rates.plain(1e9, 1e8, "given")
    spent = scoring(laid_out([20] * 6, 4, made, found), found, made)
    assert spent.seconds(rates) == pytest.approx(spent.flops / 1e9)
    made_estimate = estimate(found, made, rates, device="x", cpu=True, room=None)
    assert made_estimate.seconds == pytest.approx(
        whole(made_estimate.first) + 2 * whole(made_estimate.later) + whole(made_estimate.last)
    )


def test_devices_share_the_work_and_talk_about_it() -> None:
    found = shape()
    one = work(prompts=128)
    two = dataclasses.replace(one, devices=2)
    rates = Rates.plain(1e9, 1e9, "given", link=1e9)
    flops = [learning(laid_out(w.prompts, 4, w, found), found, w).flops for w in (one, two)]
    assert flops[1] == pytest.approx(flops[0] / 2)
    seconds = [estimate(found, w, rates, device="x", cpu=True, room=None).seconds for w in (one, two)]
    assert seconds[0] / 2 < seconds[1] < seconds[0]


# Memory


def test_parts_are_those_of_real_tensors() -> None:
    found, made = shape("tied"), work()
    model = real("tied", 4)
    update = next(m for m in memory(found, made, cpu=True).moments if m.name == "update").parts
    weights = sum(
        p.nbytes for key, p in model.named_parameters() if "lora_" not in key and "modules_to_save" not in key
    )
    assert update["weights"] == weights
    assert update["adapter"] == sum(p.nbytes for key, p in model.named_parameters() if "lora_" in key)
    optimiser = MasterAdamW([p for p in model.parameters() if p.requires_grad], None, Optimisation(1e-3, 1))
    optimiser.step([torch.ones_like(m) for m in optimiser.masters], 1.0)
    held = sum(v.nbytes for key, v in optimiser.state().items() if not key.startswith("step"))
    assert update["fp32 masters and moments"] == held
    copied = sum(p.nbytes for key, p in model.named_parameters() if key.endswith("base_layer.weight"))
    drawing = next(m for m in memory(found, made, cpu=True).moments if m.name == "sampling").parts
    before = "weights as they were before folding"
    assert drawing[before] == copied
    elsewhere = memory(found, made, cpu=False)
    assert elsewhere.host[before] == copied and not any(before in m.parts for m in elsewhere.moments)


def test_shards_are_parts_of_what_is_divided() -> None:
    found = shape("llama", 0)
    one, four = (
        {m.name: m.parts for m in memory(found, dataclasses.replace(work(), devices=n, shard=how), cpu=False).moments}
        for n, how in ((1, "none"), (4, "fsdp"))
    )
    for part in ("weights", "fp32 masters and moments"):
        assert four["update"][part] == one["update"][part] / 4
    zero2 = dataclasses.replace(work(), devices=4, shard="zero2")
    apart = {m.name: m.parts for m in memory(found, zero2, cpu=False).moments}["update"]
    assert apart["gathered weights"] == four["sampling"]["gathered weights"] == one["update"]["weights"]
    assert apart["fp32 masters and moments"] == one["update"]["fp32 masters and moments"] / 4


def test_what_does_not_fit_comes_with_what_would() -> None:
    found = shape("llama", 0)
    made = work(token_budget=2048)
    peak = memory(found, made, cpu=False).peak.total
    tight = estimate(found, made, None, device="x", cpu=False, room=peak, with_lora=lambda rank: shape("llama", rank))
    assert tight.fits is False
    for one in tight.remedies:
        assert one.peak < peak
        assert one.fits == (one.peak <= 0.9 * peak)
    said = "\n".join(lines(tight))
    for option in ("--token-budget", "--gradient-checkpointing", "--lora-rank 16", "--shard fsdp"):
        assert option in said
    assert "--engine" not in said  # what draws is not what takes most
    roomy = estimate(found, made, None, device="x", cpu=False, room=2 * peak)
    assert roomy.fits and not roomy.remedies


# Rates


def test_data_sheets_are_marked_as_assumptions() -> None:
    for name in ACCELERATORS:
        found = of_accelerator(name, "bf16")
        assert "sheet (assumed)" in found.source and not found.sure
        assert found.forward < ACCELERATORS[name].bf16
    assert of_accelerator("h100", "bf16", devices=64).link < of_accelerator("h100", "bf16", devices=8).link


@pytest.mark.parametrize(
    ("called", "name"),
    [
        *[(f"NVIDIA {kind}", "h100") for kind in ("H100 80GB HBM3", "H100 PCIe", "H100 NVL")],
        *[(f"NVIDIA {kind}", "h200") for kind in ("H200", "H200 NVL")],
        *[(f"NVIDIA {kind}", "a100") for kind in ("A100 80GB PCIe", "A100-SXM4-80GB", "A100-PCIE-40GB")],
        *[("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("AMD Instinct MI300X", "mi300x")],
        *[(f"NVIDIA {kind}", None) for kind in ("L40", "GH200 480GB", "A100X", "RTX A1000", "GeForce RTX 4090")],
        *[("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("AMD Instinct MI300A", None)],
    ],
)
def test_an_accelerator_is_known_by_what_its_driver_calls_it(called: str, name: str | None, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: called)
    monkeypatch.setattr(beforehand, "quick", lambda *_: (1e12, 1e11))
    found = beforehand.usual.__wrapped__(torch.device("cuda"), "bf16")
    assert found.source.startswith(ACCELERATORS[name].name if name else "shares that are usual")


def test_given_rates_stand_for_all() -> None:
    found = given_rates(None, flops=2e9, bandwidth=3e9, link=None)
    assert (found.forward, found.decode, found.weights) == (2e9, 2e9, 3e9)
    with pytest.raises(UserError, match="--bandwidth is missing"):
        given_rates(None, flops=2e9, bandwidth=None, link=None)


def test_given_rates_leave_the_others_as_they_are() -> None:
    """What an accelerator takes for a call, for its host and its link is no matter of FLOP/s."""
    sheet = of_accelerator("h100", "bf16")
    found = given_rates(sheet, flops=2e14, bandwidth=3e12, link=None)
    assert (found.forward, found.decode, found.weights, found.cache) == (2e14, 2e14, 3e12, 3e12)
    assert (found.call, found.host, found.link) == (sheet.call, sheet.host, sheet.link)
    assert found.source.startswith("given: 2e+14 FLOP/s, 3e+12 B/s; else NVIDIA H100")
    assert given_rates(sheet, flops=None, bandwidth=None, link=1e9) == dataclasses.replace(sheet, link=1e9)


# The command


def asked(tmp_path: Path, tiny: Path, *more: object, **changes: object) -> list[object]:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text("\n".join(json.dumps({"prompt": f"say {i}"}) for i in range(6)))
    given = {"model": tiny, "prompts": prompts, "output": tmp_path / "run"} | changes
    return ["estimate", *words(**(SETTINGS | given)), "--held-out", prompts, *more]


def test_whatever_train_takes_is_taken(tmp_path: Path, tiny: Path) -> None:
    said = command(*asked(tmp_path, tiny, "--flops", 1e9, "--bandwidth", 1e9, "--json"))
    assert said.code == 0, said
    found = json.loads(said.out)
    assert not (tmp_path / "run").exists()
    assert found["work"]["prompts"] == 6 and found["model"]["name"] == str(tiny)
    assert found["seconds"]["run"] > 0
    config = tmp_path / "c.yaml"
    config.write_text(command(*train_words(model=tiny, prompts=tmp_path / "p.jsonl"), "--print-config").out)
    again = command("estimate", "--config", config, "--flops", 1e9, "--bandwidth", 1e9)
    assert again.code == 0 and "memory of this process" in again.out
    from srlm.commands import estimate as command_estimate
    from srlm.commands import train

    assert set(train.parser(()).options) < set(command_estimate.parser(()).options)


@pytest.mark.parametrize(("reward", "scored"), [("majority", False), ("certain_majority", True)])
def test_votes_that_are_weighed_are_scored(reward: str, scored: bool, tmp_path: Path, tiny: Path) -> None:
    more = ("--flops", 1e9, "--bandwidth", 1e9, "--json")
    found = json.loads(command(*asked(tmp_path, tiny, *more, reward=reward, votes=64, num_samples=4)).out)
    tokens = {stage["name"]: stage["tokens"] for stage in found["rounds"]["later"]}
    assert tokens["sample votes"] == pytest.approx(15 * tokens["sample rollouts"])
    assert tokens.get("score votes") == (tokens["sample votes"] if scored else None)


def test_measuring_gives_the_seconds_of_real_layers(tmp_path: Path, tiny: Path) -> None:
    found = json.loads(command(*asked(tmp_path, tiny, "--measure", "--json")).out)
    assert found["rates"]["sure"] and found["seconds"]["run"] > 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--flops", 1e14, "--bandwidth", 1e12), "--flops, --bandwidth: of a processor, which is what is here"),
        (("--memory", 8e10), "--memory: of a processor, which is what is here"),
        (("--memory", 8e10, "--accelerator", "h100"), None),
        ((), None),
    ],
)
def test_whose_the_given_numbers_are_is_said(more: tuple[object, ...], said: str | None, tiny: Path) -> None:
    found = json.loads(command("estimate", "--model", tiny, "--num-prompts", 8, *more, "--json").out)
    lines = [line for line in found["assumed"] if "which is what is here" in line]
    assert lines == [f"{said} (an accelerator is named with --accelerator)"] if said else not lines


def test_prompts_can_be_a_number(tmp_path: Path, tiny: Path) -> None:
    said = command(
        "estimate", "--model", tiny, "--num-prompts", 40, "--prompt-length", 33, "--accelerator", "h100", "--json"
    )
    found = json.loads(said.out)
    assert found["work"]["prompts"] == 40 and found["work"]["held_out"] == 4
    assert "H100" in found["device"] and "sheet (assumed)" in found["rates"]["source"]


def test_what_is_wrong_is_one_sentence(tmp_path: Path, tiny: Path) -> None:
    number = ("estimate", "--model", tiny, "--num-prompts", 8)
    assert "no prompts were given" in refused("estimate", "--model", tiny)
    assert "expected one of the two" in refused(*asked(tmp_path, tiny, "--num-prompts", 3))
    assert "expected one of h100" in refused(*number, "--accelerator", "abacus")
    assert "leave one out" in refused(*number, "--accelerator", "h100", "--measure")
    assert "--flops says how fast it is: leave one out" in refused(*number, "--measure", "--flops", 1, "--bandwidth", 1)
    assert "--link is -5" in refused(*number, "--measure", "--link", -5)
    assert "expected from 1 to --max-new-tokens (64)" in refused(*number, "--expected-length", 65)
    assert "expected at least 1" in refused(*number, "--devices", 0)
    assert "expected none, zero2, zero3 or fsdp" in refused(*number, "--shard", "half")
    assert "--flops is -1" in refused(*number, "--flops", -1, "--bandwidth", 1)
    assert "expected a finite number of bytes" in refused(*number, "--memory", 0)
    assert "--table was given without --accelerator" in refused("estimate", "--table")
    assert "does not exist" in refused("estimate", "--model", tmp_path / "no", "--num-prompts", 1)


def test_help_is_short_and_names_what_is_its_own() -> None:
    said = command("estimate", "--help").out
    assert "--measure" in said and "--devices" in said and "--top-k" not in said
    assert "--top-k" in command("estimate", "--help-all").out


def test_a_run_says_first_what_it_will_take(tmp_path: Path, tiny: Path) -> None:
    train = ["train", *asked(tmp_path, tiny, rounds=1, max_new_tokens=2)[1:], "--quiet"]
    said = command(*train)
    assert said.code == 0, said
    (line,) = [line for line in said.out.splitlines() if line.startswith("estimated: ")]
    assert "of memory at most" in line and "if all responses have 2 tokens" in line


@pytest.mark.parametrize(("reshard", "shard"), [(None, "none"), (True, "fsdp"), (False, "zero2")])
@pytest.mark.parametrize("recompute", [False, True])
def test_a_policy_in_shards_is_foreseen_in_shards(tiny: Path, reshard: Any, shard: str, recompute: bool) -> None:
    """As the config of accelerate has it, whatever the run's own says."""
    policy = TransformerPolicy.load(str(tiny), max_new_tokens=4, gradient_checkpointing=recompute)
    policy.scorer.shards = None if reshard is None else SimpleNamespace(reshard=reshard)
    policy.processes = SimpleNamespace(num_processes=2)
    made = foreseen("tiny", policy, CONFIG, [20] * 6, [])
    assert made is not None
    assert (made.work.devices, made.work.shard, made.work.recompute) == (2, shard, recompute)


# docs/scaling.md


def scaling_blocks(text: str) -> list[tuple[list[str], str]]:
    """Commands in comments, and what stands behind each of them: a block of code, or a table."""
    found = re.findall(r"<!-- (.+?) -->\n(?:```\n(.+?)\n```|\n((?:\|[^\n]*\n)+))", text, re.DOTALL)
    return [(command.split(), (code or table).strip()) for command, code, table in found]


def scaling_output(words: list[str], folder: Path) -> str:
    """Of a command whose model stands for a config alone."""
    if "--model" in words:
        name = words[words.index("--model") + 1]
        (like,) = [published for part, published in LIKE.items() if re.search(rf"(?:^|[^.\d]){re.escape(part)}", name)]
        models()[like].save_pretrained(folder / like)
        words = [str(folder / like) if word == name else word for word in words]
    said = command(*words)
    assert said.code == 0, said
    return said.out


def test_the_guide_shows_what_its_commands_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = scaling_blocks(DOC.read_text(encoding="utf-8"))
    assert len(blocks) == 6
    some = {"SmolLM2 135M": models()["SmolLM2 135M"]}  # the others take longer
    monkeypatch.setattr("srlm.training.sizes_table.models", lambda: some)
    for asked_for, block in blocks:
        said = scaling_output(asked_for, tmp_path).splitlines()
        shown = block.splitlines()
        if "--table" in asked_for:
            assert set(said) <= set(shown) and len(shown) == 2 + 6 * len(models())
        else:
            assert set(shown) <= set(said)


def test_published_sizes_are_what_they_are_called() -> None:
    for name, layout in models().items():
        billions = of_config(name, layout, torch.bfloat16, rank=0).num_parameters() / 1e9
        called = 0.135 if name.endswith("M") else float(name.split()[-1].removesuffix("B"))
        assert billions == pytest.approx(called, rel=0.09), name


@pytest.mark.parametrize("rank", [4, 0])
def test_a_model_that_was_looked_at_is_let_go(tiny, rank) -> None:
    """A graph that kept its own outputs held the weights for good: of every arm of a comparison, a model."""
    policy = TransformerPolicy.load(str(tiny), dtype="fp32", lora_rank=rank, max_new_tokens=4)
    assert shape_of(policy.name, policy.model).saved > 0
    weights = [weakref.ref(parameter) for parameter in policy.model.parameters()]
    del policy
    gc.collect()
    assert not [weight for weight in weights if weight() is not None]


@pytest.mark.parametrize(("most", "held"), [(None, 64), (5, 5), (100, 64)])
def test_no_more_prompts_are_held_out_than_asked(most, held) -> None:
    from srlm.estimate.settings import Asked
    from srlm.training.beforehand import _lengths

    config = SelfRewardConfig(max_held_out=most, held_out_share=0.5)
    assert len(_lengths("a model", config, None, None, Asked(num_prompts=400))[1]) == held
