"""Who gets an anchor that several boxes claim."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atss_d2.modeling.matchers.selection import (
    BACKGROUND,
    DenseConflicts,
    ordered_bits,
    positive_priority_keys,
    priority_keys,
    resolve_conflicts,
    stable_topk,
)


@st.composite
def claims(draw):
    """Candidates (M, C), which of them are claimed, their priorities, images, N and R."""
    num_anchors = draw(st.integers(1, 8))
    counts = draw(st.lists(st.integers(0, 4), max_size=3))
    width = draw(st.integers(0, num_anchors))
    anchors = st.permutations(range(num_anchors)).map(lambda order: order[:width])
    # Few different priorities: ties. -0.0 and 0.0 are one.
    priorities = st.sampled_from([-1.0, -0.0, 0.0, 0.25, 0.5, 1e30])

    def rows(of):
        return [draw(of) for _ in range(sum(counts))]

    def lists(of):
        return rows(st.lists(of, min_size=width, max_size=width))

    return (
        torch.tensor(rows(anchors), dtype=torch.int64).view(sum(counts), width),
        torch.tensor(lists(st.booleans()), dtype=torch.bool).view(sum(counts), width),
        torch.tensor(lists(priorities), dtype=torch.float32).view(sum(counts), width),
        torch.repeat_interleave(torch.tensor(counts, dtype=torch.int64)),
        len(counts),
        num_anchors,
    )


@settings(max_examples=100, derandomize=True)
@given(claims=claims())
def test_few_claims_give_what_claims_of_all_anchors_give(claims):
    candidates, positive, priorities, image_idxs, num_images, num_anchors = claims
    keys = priority_keys(priorities, torch.arange(len(candidates))[:, None])
    matched = resolve_conflicts(candidates, positive, keys, image_idxs, num_images, num_anchors)

    conflicts = DenseConflicts(num_images, num_anchors, torch.device("cpu"))
    if len(candidates):
        wanted = torch.zeros(len(candidates), num_anchors, dtype=torch.bool)
        dense_keys = torch.zeros(len(candidates), num_anchors, dtype=torch.int64)
        conflicts.claim(
            dense_keys.scatter(1, candidates, keys),
            image_idxs,
            wanted.scatter(1, candidates, positive),
        )
    assert torch.equal(matched, conflicts.winners())
    assert matched.shape == (num_images, num_anchors)


@settings(max_examples=100, derandomize=True)
@given(claims=claims())
def test_the_highest_key_wins_and_at_a_tie_the_lower_box(claims):
    candidates, positive, priorities, image_idxs, num_images, num_anchors = claims
    keys = priority_keys(priorities, torch.arange(len(candidates))[:, None])
    matched = resolve_conflicts(candidates, positive, keys, image_idxs, num_images, num_anchors)
    for image in range(num_images):
        for anchor in range(num_anchors):
            rivals = [
                (-priorities[m, c].item(), m)
                for m in range(len(candidates))
                for c in range(candidates.shape[1])
                if image_idxs[m] == image and candidates[m, c] == anchor and positive[m, c]
            ]
            expected = min(rivals)[1] if rivals else BACKGROUND
            assert matched[image, anchor] == expected


@settings(max_examples=100, derandomize=True)
@given(claims=claims())
def test_keys_of_priorities_that_are_not_negative_sort_as_all_keys(claims):
    priorities = claims[2].abs()
    box_idxs = torch.arange(len(priorities))[:, None]
    keys = positive_priority_keys(priorities, box_idxs)
    assert torch.equal(keys >= 0, priorities > 0)  # 0 claims nothing
    is_claim = keys >= 0
    expected = priority_keys(priorities, box_idxs)[is_claim].sort().indices
    assert torch.equal(keys[is_claim].sort().indices, expected)
    conflicts = DenseConflicts(1, priorities.shape[1], torch.device("cpu"))
    if len(keys):
        conflicts.claim(keys, torch.zeros(len(keys), dtype=torch.int64))
        best = priorities.max(dim=0)  # of equal ones the first
        expected = torch.where(best.values > 0, best.indices, BACKGROUND)
        assert torch.equal(conflicts.winners()[0], expected)


@settings(max_examples=100, derandomize=True)
@given(data=st.data(), largest=st.booleans())
def test_the_first_of_equal_values_is_taken_whatever_their_sign(data, largest):
    value = st.one_of(
        st.sampled_from([-1.0, -1e-3, -1e-45, -0.0, 0.0, 1e-45, 0.25, 1.0]),
        st.floats(-1, 1, width=32),
    )
    values = data.draw(st.lists(value, min_size=1, max_size=12))
    k = data.draw(st.integers(1, len(values)))
    found = stable_topk(ordered_bits(torch.tensor([values])), k, largest=largest)[0].tolist()
    sign = -1 if largest else 1
    assert found == sorted(range(len(values)), key=lambda i: (sign * values[i], i))[:k]
