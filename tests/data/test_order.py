"""The order of the images, for any shard sizes, lanes, batch, seed and number of processes."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from distgan import UsageError
from distgan.data.order import WINDOW, Lanes, rows


@st.composite
def plans(draw):
    lanes = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    counts = draw(st.lists(st.integers(0, 60), min_size=1, max_size=20).filter(lambda counts: sum(counts) >= lanes))
    return np.array(counts), draw(st.integers(0, 2**32)), lanes, lanes * draw(st.integers(1, 5))


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def global_minibatch(plan, position: int, world: int) -> list[int]:
    """What `world` processes read together, each opened anew at `position`."""
    counts, seed, lanes, batch = plan
    whole = np.full(batch, -1)
    for rank in range(world):
        mine = Lanes(counts, seed, lanes, rank * lanes // world, (rank + 1) * lanes // world)
        ids = mine.ids(position, batch)
        assert len(ids) == batch // world
        whole[rows(batch, lanes, rank, world)] = ids
    return whole.tolist()


@given(plans(), st.integers(0, 5))
def test_an_epoch_is_a_permutation_less_a_part_of_a_row(plan, epoch):
    counts, seed, lanes, _ = plan
    order = Lanes(counts, seed, lanes)
    ids = order.ids(epoch * order.epoch_images, order.epoch_images).tolist()
    assert len(set(ids)) == len(ids) > sum(counts) - lanes
    assert set(ids) <= set(range(sum(counts)))


@given(plans(), st.integers(0, 40))
def test_every_number_of_processes_reads_the_same_minibatch(plan, number):
    _, _, lanes, batch = plan
    whole = global_minibatch(plan, number * batch, 1)
    assert all(global_minibatch(plan, number * batch, world) == whole for world in divisors(lanes))


@given(plans(), st.integers(0, 12), st.integers(1, 4), st.data())
def test_continued_at_any_image_on_any_number_of_processes(plan, number, more, data):
    counts, seed, lanes, batch = plan
    undisturbed = Lanes(counts, seed, lanes)
    for k in range(number + more):  # one object all along, across the ends of epochs
        ids = undisturbed.ids(k * batch, batch).tolist()
        if k >= number:
            assert global_minibatch(plan, k * batch, data.draw(st.sampled_from(divisors(lanes)))) == ids


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_epochs_and_seeds_differ_and_every_image_has_its_turn(seed):
    order = Lanes(np.array([37]), seed, 8)
    epochs = [order.ids(e * order.epoch_images, order.epoch_images) for e in range(20)]
    assert not np.array_equal(epochs[0], epochs[1])
    assert len({int(i) for epoch in epochs for i in epoch}) == 37  # what one epoch leaves out comes in others
    other = Lanes(np.array([37]), seed + 1, 8)
    assert not np.array_equal(epochs[0], other.ids(0, other.epoch_images))


def test_lanes_longer_than_a_window():
    order = Lanes(np.full(7, 3 * WINDOW), 0, 4)
    ids = order.ids(0, order.epoch_images)
    assert len(set(ids.tolist())) == order.epoch_images
    step = np.abs(np.diff(ids[::4]))
    assert np.median(step) > 100  # neighbours in the shard are not neighbours in a lane


@pytest.mark.parametrize(("nodes", "shards"), [(4, 300), (16, 2000), (128, 10_000)])
def test_a_node_reads_its_part_of_the_shards(nodes, shards):
    """1,024 processes on 128 nodes at most: all shards together are read about once, and the minibatches are whole."""
    world, lanes = 8 * nodes, max(64, 8 * nodes)
    counts = np.random.default_rng(0).integers(40, 60, shards)
    whole = Lanes(counts, 1, lanes)
    ids = whole.ids(0, whole.epoch_images)
    assert len(set(ids.tolist())) == whole.epoch_images > counts.sum() - lanes
    starts = np.cumsum(counts)
    by_lane = ids.reshape(-1, lanes)
    read = 0
    for node in range(nodes):
        mine = by_lane[:, node * lanes // nodes : (node + 1) * lanes // nodes]
        read += len(np.unique(np.searchsorted(starts, mine, side="right")))
    assert read / shards < 1 + 2 * nodes / shards + 0.01
    rank = world // 3
    part = Lanes(counts, 1, lanes, rank * lanes // world, (rank + 1) * lanes // world)
    assert np.array_equal(part.ids(0, lanes), ids[:lanes][rows(lanes, lanes, rank, world)])


def test_what_cannot_be_divided_is_named():
    with pytest.raises(UsageError, match="5 processes do not divide the 64 lanes of data.lanes; 4 or 8 would"):
        rows(64, 64, 0, 5)
    with pytest.raises(UsageError, match="64 lanes need at least 64 images; the set has 10"):
        Lanes(np.array([10]), 0, 64)
