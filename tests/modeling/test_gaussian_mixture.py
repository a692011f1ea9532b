"""Mixtures of two Gaussians: published fits, loops, and rows that do not see each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling import gaussian_mixture
from atss_d2.modeling.gaussian_mixture import fit_two_gaussians
from benchmarks.pretend_gpu import count, pretend, pretended_gpu
from tests.paa_loops import two_gaussians
from tests.reference import published_quality


def padded(rows):
    """Rows of different lengths as values and mask; what fills up is not a number."""
    width = max(map(len, rows), default=0)
    values = torch.full((len(rows), width), float("nan"), dtype=torch.float64)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        values[i, : len(row)] = torch.as_tensor(row, dtype=torch.float64)
        mask[i, : len(row)] = True
    return values, mask


def random_rows(seed, num):
    """Costs of two kinds of candidates, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(num):
        size = torch.randint(2, 30, (), generator=generator).item()
        is_low = torch.rand(size, generator=generator) < torch.rand((), generator=generator)
        noise = torch.randn(size, generator=generator, dtype=torch.float64)
        row = torch.where(is_low, 1 + 0.2 * noise, 2.2 + 0.4 * noise)
        row[size // 2 :: 5] = row[0]
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", ["paa", "paa_match"])
def test_fits_are_those_of_scikit_learn(name):
    """In float64; the fit of equal costs (made-up box 4) depends on roundings."""
    numbers = published_quality()
    counts = numbers[f"{name}.gmm_count"].tolist()
    anchors, components, densities = (
        torch.from_numpy(numbers[f"{name}.gmm_{key}"]).split(counts)
        for key in ("anchor", "component", "log_density_f64")
    )
    if name == "paa":
        # One of each box with at least two candidates, image by image.
        costs = [
            torch.from_numpy(numbers[f"paa.cost_{i}"])
            for i in range(2)
            for num_candidates in np.unique(
                numbers[f"paa.assigned_before_{i}"], return_counts=True
            )[1][1:]
            if num_candidates > 1
        ]
        rows = [cost[a] for cost, a in zip(costs, anchors, strict=True)]
    else:
        cost_of = dict(
            zip(numbers["paa_match.anchor"].tolist(), numbers["paa_match.cost"].tolist())
        )
        rows = [torch.tensor([cost_of[i] for i in a.tolist()]) for a in anchors]
    mixture = fit_two_gaussians(*padded(rows))
    for i, size in enumerate(counts):
        torch.testing.assert_close(mixture.log_density[i, :size], densities[i], rtol=0, atol=1e-5)
        if numbers[f"{name}.gmm_clear"][i]:
            assert torch.equal(mixture.is_low[i, :size], components[i] == 0)


@settings(max_examples=30, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**31), num=st.integers(1, 4))
def test_equals_the_loops(seed, num):
    rows = random_rows(seed, num)
    mixture = fit_two_gaussians(*padded(rows))
    for i, row in enumerate(rows):
        is_low, densities = two_gaussians(row.tolist())
        assert mixture.is_low[i, : len(row)].tolist() == is_low
        found = mixture.log_density[i, : len(row)].tolist()
        assert found == pytest.approx(densities, rel=1e-9, abs=1e-9)


def test_rows_do_not_see_each_other():
    """Neither those that converge sooner nor those that never do, nor what fills them up."""
    values, mask = padded(random_rows(1, 30))
    together = fit_two_gaussians(values, mask)
    for i in range(30):
        alone = fit_two_gaussians(values[i : i + 1], mask[i : i + 1])
        assert torch.equal(alone.is_low[0][mask[i]], together.is_low[i][mask[i]])
        torch.testing.assert_close(
            alone.log_density[0][mask[i]], together.log_density[i][mask[i]], rtol=1e-12, atol=1e-12
        )


def test_a_gpu_gets_the_same_without_a_wait(monkeypatch):
    values, mask = padded(random_rows(2, 20))
    expected = fit_two_gaussians(values, mask)
    with pretended_gpu():
        found = fit_two_gaussians(pretend(values), pretend(mask))
    torch.testing.assert_close(found.log_density.values[mask], expected.log_density[mask])
    assert torch.equal(found.is_low.values[mask], expected.is_low[mask])
    values, mask = pretend(values), pretend(mask)
    _, waits = count(lambda: fit_two_gaussians(values, mask))
    assert waits.total() == 0
    monkeypatch.setattr(gaussian_mixture, "_MAX_ITERATIONS", 2)
    few = fit_two_gaussians(*padded(random_rows(2, 20)))
    assert not torch.equal(few.log_density, expected.log_density)  # some take more than two


def test_extreme_rows_are_finite():
    rows = [[0.0, 1e9], [5.0] * 45, [1.0, 1.0, 1.0, 1e9], [0.0, 1e-30], [3.0], [1e9] * 3]
    values, mask = padded(rows)
    assert fit_two_gaussians(values, mask).log_density[mask].isfinite().all()
    half = fit_two_gaussians(values[:2, :2].half().nan_to_num(posinf=6e4), mask[:2, :2])
    assert half.log_density.dtype == torch.float64


@pytest.mark.parametrize("shape", [(0, 45), (3, 4)])
def test_no_values_at_all(shape):
    mixture = fit_two_gaussians(torch.zeros(shape), torch.zeros(shape, dtype=torch.bool))
    assert mixture.is_low.shape == mixture.log_density.shape == shape
