"""The order of the images, for any shard sizes, lanes, batch, seed and number of processes."""

import itertools

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from distgan.data import order
from distgan.data.order import WINDOW, Lanes, rank_rows
from distgan.errors import UsageError


@st.composite
def plans(draw):
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(lambda counts: sum(counts) >= lanes))
    return np.array(counts), draw(st.integers(0, 2**32)), lanes, lanes * draw(st.integers(1, 5))


@settings(deadline=None)
@given(plans(), st.integers(1, 9), st.integers(0, 12), st.data())
def test_needs_cover_what_is_read_and_end_with_the_last_image(plan, window, first, data):
    counts, seed, lanes, batch = plan
    rank, world = data.draw(st.sampled_from([(r, w) for w in divisors(lanes) for r in range(w)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "WINDOW", window)
        local = Lanes(counts, seed, lanes, rank * lanes // world, (rank + 1) * lanes // world)
        position = first * batch
        needs = list(itertools.takewhile(lambda need: need[0] < position + 3 * batch, local.needs(position)))
        assert needs == sorted(needs, key=lambda need: need[0]) and all(end > position for _, end, _ in needs)
        for at in range(position, position + 3 * batch, lanes):
            read = set((np.searchsorted(local.starts, local.ids(at, lanes), side="right") - 1).tolist())
            wanted = {shard for first, end, shard in needs if first <= at < end}
            assert read <= wanted
            edge = at // lanes % local.length // window * window  # the window's images, in any order
            slots = range(edge, min(edge + window, local.length))
            epoch = at // local.epoch_images * local.epoch_images
            ids = np.concatenate([local.ids(epoch + slot * lanes, lanes) for slot in slots])
            assert wanted == set((np.searchsorted(local.starts, ids, side="right") - 1).tolist())


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def global_minibatch(plan, position: int, world: int) -> list[int]:
    """The sample ids that `world` processes read together, each with a new Lanes."""
    counts, seed, lanes, batch = plan
    minibatch = np.full(batch, -1)
    for rank in range(world):
        local = Lanes(counts, seed, lanes, rank * lanes // world, (rank + 1) * lanes // world)
        ids = local.ids(position, batch)
        assert len(ids) == batch // world
        minibatch[rank_rows(batch, lanes, rank, world)] = ids
    return minibatch.tolist()


@given(plans(), st.integers(0, 5))
def test_epoch_is_a_permutation_less_fewer_images_than_lanes(plan, epoch):
    counts, seed, lanes, _ = plan
    order = Lanes(counts, seed, lanes)
    ids = order.ids(epoch * order.epoch_images, order.epoch_images).tolist()
    assert len(set(ids)) == len(ids) > sum(counts) - lanes
    assert set(ids) <= set(range(sum(counts)))


@settings(deadline=None)
@given(plans(), st.integers(0, 40))
def test_global_minibatch_is_the_same_for_every_number_of_processes(plan, index):
    _, _, lanes, batch = plan
    expected = global_minibatch(plan, index * batch, 1)
    assert all(global_minibatch(plan, index * batch, world) == expected for world in divisors(lanes))


@settings(deadline=None)
@given(plans(), st.integers(0, 12), st.integers(1, 4), st.data())
def test_resuming_at_any_position_on_any_number_of_processes(plan, first, more, data):
    counts, seed, lanes, batch = plan
    uninterrupted = Lanes(counts, seed, lanes)
    for k in range(first + more):  # one object throughout, across epochs
        ids = uninterrupted.ids(k * batch, batch).tolist()
        if k >= first:
            assert global_minibatch(plan, k * batch, data.draw(st.sampled_from(divisors(lanes)))) == ids


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_epochs_and_seeds_differ_and_every_image_is_read(seed):
    order = Lanes(np.array([37]), seed, 8)
    epochs = [order.ids(e * order.epoch_images, order.epoch_images) for e in range(20)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert (
        len({int(i) for epoch in epochs for i in epoch}) == 37
    )  # an image that one epoch leaves out is read in others
    other = Lanes(np.array([37]), seed + 1, 8)
    assert not np.array_equal(epochs[0], other.ids(0, other.epoch_images))


def test_lanes_longer_than_a_window_are_shuffled():
    order = Lanes(np.full(7, 3 * WINDOW), 0, 4)
    ids = order.ids(0, order.epoch_images)
    assert len(set(ids.tolist())) == order.epoch_images
    step = np.abs(np.diff(ids[::4]))
    assert np.median(step) > 100  # neighbours in a shard are far apart in a lane


@pytest.mark.parametrize(("nodes", "shards"), [(4, 300), (16, 2000), (128, 10_000)])
def test_nodes_read_each_shard_about_once(nodes, shards):
    """Up to 128 nodes of 8 processes: together they read each shard about once, and the minibatches are complete."""
    world, lanes = 8 * nodes, max(64, 8 * nodes)
    counts = np.random.default_rng(0).integers(40, 60, shards)
    order = Lanes(counts, 1, lanes)
    ids = order.ids(0, order.epoch_images)
    assert len(set(ids.tolist())) == order.epoch_images > counts.sum() - lanes
    starts = np.cumsum(counts)
    by_lane = ids.reshape(-1, lanes)
    read = 0
    for node in range(nodes):
        local = by_lane[:, node * lanes // nodes : (node + 1) * lanes // nodes]
        read += len(np.unique(np.searchsorted(starts, local, side="right")))
    assert read / shards < 1 + 2 * nodes / shards + 0.01
    rank = world // 3
    local = Lanes(counts, 1, lanes, rank * lanes // world, (rank + 1) * lanes // world)
    assert np.array_equal(local.ids(0, lanes), ids[:lanes][rank_rows(lanes, lanes, rank, world)])


def test_lanes_that_do_not_fit_are_bad_input():
    with pytest.raises(UsageError, match="5 processes do not divide the 64 lanes of data.lanes; 4 or 8 would"):
        rank_rows(64, 64, 0, 5)
    with pytest.raises(UsageError, match="64 lanes need at least 64 images; the dataset has 10"):
        Lanes(np.array([10]), 0, 64)
