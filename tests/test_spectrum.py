"""benchmarks/spectrum.py: its Gram matrix and spectrum by features that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.spectrum import gram, spectrum


def test_the_gram_matrix_is_that_of_gradients_in_the_head() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    head = torch.randn(5, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    token, sequence = torch.tensor([0, 4, 2, 2, 1, 3, 4]), torch.tensor([0, 0, 1, 1, 1, 2, 2])
    gradients = []
    for number in range(3):
        own = sequence == number
        log_prob = torch.log_softmax(hidden[own] @ head.T, -1).gather(-1, token[own][:, None]).sum()
        gradients.append(torch.autograd.grad(log_prob, head)[0].flatten())
    features = torch.stack(gradients)
    with torch.no_grad():
        found = gram(hidden, torch.softmax(hidden @ head.T, -1), token, sequence)
    torch.testing.assert_close(found, features @ features.T)


def test_the_spectrum_is_that_of_the_differences() -> None:
    """The covariance of phi(x, y) - phi(x, y') over all pairs of a prompt, features scaled to norm at most 1."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4, 3, 6))
    scaled = features / np.linalg.norm(features, axis=-1).max()
    pairs = [each[i] - each[j] for each in scaled for i in range(3) for j in range(3) if i != j]
    expected = np.linalg.eigvalsh(np.mean([np.outer(pair, pair) for pair in pairs], 0))[::-1]
    flat = features.reshape(12, 6)
    found = spectrum(flat @ flat.T, 4)
    assert found[:6] == pytest.approx(expected) and found[6:] == pytest.approx(np.zeros(6), abs=1e-12)
