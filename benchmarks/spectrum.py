"""Rem. 6.5 on a language model: how fast do the eigenvalues of its feature differences fall, and what is d_eff?

    python -m benchmarks.spectrum [--model smollm2] [--prompts 64] [--samples 4] [--tokens 12]

Near pi_0 a language model with a trainable head and a frozen body is a linear softmax whose features are the gradient
of log pi(y|x) in the head, phi(x, y) = sum_t (e_{y_t} - p_t) h_t': tokens' one-hot rows less next-token probabilities,
times last hidden states, V times D numbers. Responses are drawn from the model. Within a prompt phi(x, y) - phi(x, y')
has twice the covariance of phi(x, y), so the spectrum comes from the Gram matrix of features centred a prompt, an entry
of which is sum_{t,t'} (e_{y_t} - p_t).(e_{y'_t'} - p_t') h_t.h_t'; V D is never formed. Features are scaled to norm at
most 1, as App. F and G have them, and d_eff(1/n) = sum_i mu_i/(mu_i + 1/n) (Def. G.1).

P (K - 1) differences show no more eigenvalues than they are: beyond, d_eff is that of the sample. d_eff of each half of
the prompts is printed beside it; where the halves are far below the whole, it is the sample that ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from srlm.policies.transformer.policy import TransformerPolicy
from srlm.prompts.sources import load_prompts
from srlm.theory import effective_dimension
from srlm.types import Prompts

CAPITALS = Path(__file__).parents[1] / "data" / "capitals-train.jsonl"
SIZES = (10, 100, 1000, 10_000, 100_000, 1_000_000)
Floats = NDArray[np.float64]


def gram(hidden: Tensor, prob: Tensor, token: Tensor, sequence: Tensor) -> Tensor:
    """<phi(i), phi(j)> [N, N] of sequences i, j; token n has hidden state [n, D], next-token probabilities [n, V],
    what came [n], and the number of its sequence [n]."""
    chosen = prob[:, token]
    ends = (token[:, None] == token[None]).double() - chosen - chosen.T + prob @ prob.T
    every = ends * (hidden @ hidden.T)
    member = torch.nn.functional.one_hot(sequence).double()
    return member.T @ every @ member


def spectrum(inner: Floats, prompts: int) -> Floats:
    """Eigenvalues [N], descending, of the covariance of phi(x, y) - phi(x, y'), y and y' from pi_0, for features scaled
    to norm at most 1; inner [N, N] is the Gram matrix, prompt by prompt with as many responses each."""
    count = len(inner) // prompts
    same = np.kron(np.eye(prompts), np.full((count, count), 1 / count))
    centre = np.eye(len(inner)) - same
    largest = float(np.diag(inner).max())
    values = np.linalg.eigvalsh(centre @ inner @ centre) / largest * 2 / (prompts * (count - 1))
    return np.maximum(values[::-1], 0.0)


@torch.no_grad()
def features(policy: TransformerPolicy, prompts: Prompts, samples: int, seed: int) -> Floats:
    responses = policy.sample(prompts, samples, torch.Generator().manual_seed(seed))
    hidden, prob, token, sequence = [], [], [], []
    model = policy.model.get_base_model() if hasattr(policy.model, "get_base_model") else policy.model
    head = model.get_output_embeddings()
    number = 0
    for ids, rows in zip(policy.ids(prompts), (responses.ids(i) for i in range(len(prompts))), strict=True):
        for row in rows:
            whole = torch.tensor([[*ids, *row]])
            state = model.get_decoder()(input_ids=whole).last_hidden_state[0, len(ids) - 1 : -1].float()
            hidden.append(state.double())
            prob.append(torch.softmax(head(state.to(head.weight.dtype)).float(), -1))
            token.append(torch.tensor(row))
            sequence.append(torch.full((len(row),), number))
            number += 1
    return gram(torch.cat(hidden), torch.cat(prob), torch.cat(token), torch.cat(sequence)).numpy()


def _fit(values: Floats) -> str:
    """Of ranks 3 to a third: is it log mu against log i (polynomial) or against i (exponential)?"""
    rank = np.arange(1, len(values) + 1)[2 : len(values) // 3]
    y = np.log(values[rank - 1])
    said = []
    for name, x in (("polynomial, mu ~ i^-a, a", np.log(rank)), ("exponential, mu ~ e^-ci, c", rank.astype(float))):
        slope, intercept = np.polyfit(x, y, 1)
        r2 = 1 - np.var(y - slope * x - intercept) / np.var(y)
        said.append(f"{name} = {-slope:.3g} (R^2 {r2:.3f})")
    return "; ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--file", default=str(CAPITALS))
    for name, value in (("prompts", 64), ("samples", 4), ("tokens", 12), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    policy = TransformerPolicy.load(given.model, dtype="fp32", lora_rank=0, gain=False, max_new_tokens=given.tokens)
    prompts = load_prompts(given.file).take(given.prompts, given.seed).prompts
    inner = features(policy, prompts, given.samples, given.seed)
    values = spectrum(inner, len(prompts))
    half = len(prompts) // 2
    cut = half * given.samples
    halves = [spectrum(part, half) for part in (inner[:cut, :cut], inner[cut : 2 * cut, cut : 2 * cut])]
    head = policy.model.get_output_embeddings().weight
    print(f"{given.model}: {len(prompts)} prompts, {given.samples} responses of at most {given.tokens} tokens each")
    shown = min(len(values), len(prompts) * (given.samples - 1))
    print(f"V D = {head.numel():,} dimensions; {shown} differences; trace {values.sum():.4g}")
    share = np.cumsum(values) / values.sum()
    print("mu_i/mu_1 at i = 1, 2, 5, 10, 20, 50, 100: "
          + " ".join(f"{values[i - 1] / values[0]:.3g}" for i in (1, 2, 5, 10, 20, 50, 100) if i <= shown))  # fmt: skip
    print(f"half of the trace in {int((share < 0.5).sum()) + 1} directions, .9 in {int((share < 0.9).sum()) + 1}")
    if shown >= 30:
        print(_fit(values[:shown]))
    print("n          d_eff(1/n)   of the halves")
    for n in SIZES:
        whole, *parts = (float(effective_dimension(each, 1 / n)) for each in (values, *halves))
        print(f"{n:<10} {whole:10.1f}   {parts[0]:.1f} {parts[1]:.1f}")


if __name__ == "__main__":
    main()
