"""The buffer: what it keeps, what a batch is mixed of, and that a batch can be drawn again."""

import numpy as np
import pytest
import torch
from scripts import SCRIPTS, load_script

OBS_DIM, ACTION_DIM = 3, 2
OFFLINE = list(range(1, 41))  # the dataset; rows that nobody wrote are 0; online rows have 100 up


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


def rows_of(first: int, n: int) -> torch.Tensor:
    """Rows that tell who they are: row k holds k, in column j plus j / 100."""
    width = 2 * OBS_DIM + ACTION_DIM + 3
    return torch.arange(first, first + n)[:, None] + torch.arange(width) / 100


def make_buffer(script, **settings):
    args = script.Args(**dict(batch_size=64, buffer_size=20) | settings)
    return script.ReplayBuffer(args, rows_of(1, 40), OBS_DIM, ACTION_DIM, "cpu")


def drawn(buffer, seed=0) -> torch.Tensor:
    """The numbers of the rows in a batch."""
    batch = buffer.sample(torch.Generator().manual_seed(seed))
    assert all(len(column) == buffer.batch_size for column in batch)
    return batch.obs[:, 0].long()


def ever_drawn(buffer, n_batches=200) -> list[int]:
    return sorted({row for seed in range(n_batches) for row in drawn(buffer, seed).tolist()})


def test_a_batch_has_the_columns_of_its_rows(script):
    buffer = make_buffer(script)
    buffer.add(rows_of(100, 7))
    batch = buffer.sample(torch.Generator().manual_seed(0))
    shapes = [(64, OBS_DIM), (64, ACTION_DIM), (64, 1), (64, OBS_DIM), (64, 1), (64, 1)]
    assert [column.shape for column in batch] == shapes
    # All columns of one row, from left to right: obs, actions, rewards, next_obs, ...
    order = torch.cat([batch.obs, batch.actions, batch.rewards, batch.next_obs], 1)
    order = torch.cat([order, batch.terminations, batch.mc_returns], 1)
    everything = rows_of(0, 107)
    assert torch.equal(order, everything[batch.obs[:, 0].long()])


def test_an_episode_is_packed_in_the_order_of_a_batch(script):
    args = script.Args(gamma=0.5, reward_scale=2.0, reward_bias=1.0)
    obs, next_obs = np.full((2, OBS_DIM), 1.0), np.full((2, OBS_DIM), 2.0)
    actions, rewards = np.full((2, ACTION_DIM), 3.0), np.array([4.0, 5.0])
    episode = script.Episode(obs, actions, rewards, next_obs, np.array([False, True]))
    rows = script.to_rows(args, episode)
    buffer = script.ReplayBuffer(args, rows, OBS_DIM, ACTION_DIM, "cpu")
    batch = script.Batch(*torch.cat([buffer.offline, buffer.ring])[:2].split(buffer.widths, 1))
    assert rows.dtype == torch.float32 and batch.obs.shape == (2, OBS_DIM)
    assert (batch.obs == 1).all() and (batch.next_obs == 2).all() and (batch.actions == 3).all()
    assert batch.rewards[:, 0].tolist() == [9, 11]
    assert batch.terminations[:, 0].tolist() == [0, 1]
    assert batch.mc_returns[:, 0].tolist() == [9 + 0.5 * 11, 11]


@pytest.mark.parametrize("offline_share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_the_offline_share_is_exact_once_there_are_online_rows(script, offline_share):
    buffer = make_buffer(script, offline_share=offline_share)
    before = drawn(buffer)
    assert ((1 <= before) & (before <= 40)).all(), "before the first episode there is nothing else"
    buffer.add(rows_of(100, 5))
    for seed in range(20):
        assert (drawn(buffer, seed) < 100).sum() == round(64 * offline_share)


def test_every_row_may_be_drawn(script):
    buffer = make_buffer(script, offline_share=0.5)
    assert ever_drawn(buffer) == OFFLINE
    buffer.add(rows_of(100, 5))
    assert ever_drawn(buffer) == [*OFFLINE, *range(100, 105)]


def test_draws_are_uniform(script):
    buffer = make_buffer(script, offline_share=0.5, batch_size=40_000)
    buffer.add(rows_of(100, 10))
    numbers, counts = drawn(buffer).unique(return_counts=True)
    expected = torch.where(numbers < 100, 20_000 / 40, 20_000 / 10)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_the_newest_online_rows_replace_the_oldest(script):
    """A ring of 20, filled 8 at a time; the dataset stays whole."""
    buffer = make_buffer(script, offline_share=0.5, buffer_size=20)
    for k in range(1, 6):
        buffer.add(rows_of(100 + 8 * (k - 1), 8))
        newest = range(max(100, 100 + 8 * k - 20), 100 + 8 * k)
        assert ever_drawn(buffer) == [*OFFLINE, *newest]
    assert buffer.n_added == 40


def test_of_an_episode_longer_than_the_ring_the_end_is_kept(script):
    buffer = make_buffer(script, offline_share=0.0, buffer_size=20)
    buffer.add(rows_of(100, 3))
    buffer.add(rows_of(200, 50))
    assert ever_drawn(buffer) == list(range(230, 250))


def test_one_common_buffer_is_first_in_first_out(script):
    """offline_share -1: the ring spans dataset and online rows, drawn from alike."""
    buffer = make_buffer(script, offline_share=-1, buffer_size=50)
    assert ever_drawn(buffer) == OFFLINE
    buffer.add(rows_of(100, 10))
    assert ever_drawn(buffer) == [*OFFLINE, *range(100, 110)]
    buffer.add(rows_of(110, 25))  # the oldest rows are the dataset's first
    assert ever_drawn(buffer) == [*OFFLINE[25:], *range(100, 135)]
    buffer.add(rows_of(135, 30))
    assert ever_drawn(buffer) == list(range(115, 165))


def test_one_common_buffer_has_room_for_the_dataset(script):
    buffer = make_buffer(script, offline_share=-1, buffer_size=15)
    assert ever_drawn(buffer) == OFFLINE
    buffer.add(rows_of(100, 10))
    assert ever_drawn(buffer) == [*OFFLINE[10:], *range(100, 110)]


def test_the_same_generator_draws_the_same_batch(script):
    buffer = make_buffer(script)
    buffer.add(rows_of(100, 10))
    assert torch.equal(drawn(buffer, 1), drawn(buffer, 1))
    assert not torch.equal(drawn(buffer, 1), drawn(buffer, 2))
    # Torch's own generator has no part in it.
    torch.manual_seed(5)
    first = drawn(buffer, 1)
    torch.manual_seed(6)
    assert torch.equal(first, drawn(buffer, 1))


# --- Saved and loaded -----------------------------------------------------------------------------


@pytest.mark.parametrize("offline_share", [0.5, -1])
@pytest.mark.parametrize("lengths", [[], [8], [8, 8, 8], [8, 45, 7]], ids=str)
def test_a_loaded_buffer_draws_what_the_saved_one_would(script, offline_share, lengths):
    """Now and when both have got more: every row lies in the slot that it had."""
    settings = dict(offline_share=offline_share, buffer_size=30)
    buffer, loaded = make_buffer(script, **settings), make_buffer(script, **settings)
    for k, length in enumerate(lengths, 1):
        buffer.add(rows_of(100 * k, length))
    loaded.load_state_dict(buffer.state_dict())
    for _ in range(2):
        for seed in range(20):
            assert torch.equal(drawn(loaded, seed), drawn(buffer, seed))
        for each in (buffer, loaded):
            each.add(rows_of(900, 9))


@pytest.mark.parametrize("offline_share", [0.5, -1])
def test_the_dataset_is_not_saved(script, offline_share):
    buffer = make_buffer(script, offline_share=offline_share, buffer_size=50)
    assert len(buffer.state_dict()["online"]) == 0
    buffer.add(rows_of(100, 15))
    assert buffer.state_dict()["online"][:, 0].tolist() == list(range(100, 115))


def test_a_changed_share_is_saved(script):
    """begin_finetuning may change it."""
    buffer, loaded = make_buffer(script), make_buffer(script)
    buffer.offline_share = 0.25
    loaded.load_state_dict(buffer.state_dict())
    assert loaded.offline_share == 0.25


@pytest.mark.parametrize("offline_share", [0.5, -1])
def test_the_largest_reward(script, offline_share):
    """Of dataset and ring, whatever its sign; slots that nobody wrote have no part in it."""
    buffer = make_buffer(script, offline_share=offline_share, buffer_size=60)
    buffer.ring[buffer.n_added :] = 1e9
    column = (OBS_DIM + ACTION_DIM) / 100
    assert script.largest_reward(buffer) == pytest.approx(40 + column)
    buffer.add(-rows_of(100, 3))
    assert script.largest_reward(buffer) == pytest.approx(102 + column)
