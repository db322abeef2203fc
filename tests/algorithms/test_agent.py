"""What all agents share around their losses: limits of settings, observations that are normalised,
what acting takes, and the hook before fine-tuning."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from scripts import SCRIPTS, load_script, randn, small_problem


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


# --- Limits of settings ---------------------------------------------------------------------------

LIMITS = {  # values next to a limit, on its two sides: those that are taken, those that are not
    "seed": ([0, 1], [-1]),
    "offline_steps": ([0, 1], [-1]),
    "online_steps": ([0, 1], [-1]),
    "eval_every_offline": ([1], [0, -5]),
    "eval_every_online": ([1], [0, -5]),
    "eval_episodes": ([1], [0]),
    "threads": ([1], [0]),
    "gamma": ([0.0, 0.99999], [-0.1, 1.0, 1.5, math.nan]),
    "batch_size": ([1], [0, -1]),
    "offline_share": ([-1.0, 0.0, 0.5, 1.0], [-2.0, -0.5, 1.1, math.nan]),
    "buffer_size": ([1], [0]),
    "utd": ([1], [0]),
    "tau": ([1e-6, 1.0], [0.0, -0.1, 1.5, math.nan]),
    "actor_hidden": ([(), (1,)], [(0,), (-8, 8)]),
    "critic_hidden": ([(), (1,)], [(0,), (8, -8)]),
    "value_hidden": ([(), (1,)], [(0,), (8, -8)]),
    "actor_lr": ([0.0], [-1e-9, math.nan]),
    "critic_lr": ([0.0], [-1e-9, math.nan]),
    "value_lr": ([0.0], [-1e-9, math.nan]),
    "n_actions": ([1], [0]),
    "expectile": ([0.0, 0.5, 1.0], [-0.1, 1.5, math.nan]),
    "beta": ([0.0, 1000.0], [-0.1, math.nan]),
    "dropout": ([0.0, 0.99], [-0.1, 1.0, 1.5, math.nan]),
    "fixed_log_std": ([None, -5.0, 2.0], [-5.5, 2.5, math.nan]),
    "weight_decay": ([0.0], [-1e-9, math.nan]),
    "awac_lambda": ([1e-6, 1e9], [0.0, -1.0, 1.5e9, math.nan]),
}


def test_limits_of_settings(script):
    """A value beyond one is an error that names its flag."""
    for name in (field.name for field in fields(script.Args) if field.name in LIMITS):
        taken, refused = LIMITS[name]
        for value in taken:
            assert getattr(script.Args(**{name: value}), name) == value
        for value in refused:
            with pytest.raises(ValueError, match=f"^--{name.replace('_', '-')}: must be "):
                script.Args(**{name: value})


def test_limits_are_those_of_settings_that_exist():
    known = {field.name for name in SCRIPTS for field in fields(load_script(name).Args)}
    assert LIMITS.keys() <= known


# --- Normalised observations ----------------------------------------------------------------------


def normalised_problem(script, dtype=torch.float64):
    """An agent that normalises, and beside it one that is given what is normalised already."""
    settings = dict(normalize_observations=True, tau=0.1, actor_lr=0.01, critic_lr=0.01)
    agent, batch, noise = small_problem(script, dtype, **settings)
    agent.obs_mean.copy_(randn(4, seed=1))
    agent.obs_std.copy_(randn(4, seed=2).exp())
    plain = copy.deepcopy(agent)
    plain.args = script.Args(**vars(agent.args) | {"normalize_observations": False})
    return agent, plain, batch, noise


def by_hand(agent, obs):
    return (obs - agent.obs_mean) / agent.obs_std


def test_an_update_sees_normalised_observations(script):
    agent, plain, batch, noise = normalised_problem(script)
    seen = dict(obs=by_hand(agent, batch.obs), next_obs=by_hand(agent, batch.next_obs))
    for _ in range(2):
        found = agent.update(batch, noise)
        wanted = plain.update(batch._replace(**seen), noise)
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(agent.state_dict(), plain.state_dict())


def test_acting_sees_normalised_observations(script):
    agent, plain, batch, _ = normalised_problem(script, torch.float32)
    for seed in (None, 3):
        generators = [seed and torch.Generator().manual_seed(seed) for _ in range(2)]
        found = agent.act(batch.obs, generators[0])
        wanted = plain.act(by_hand(agent, batch.obs), generators[1])
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(found, plain.act(batch.obs))


def test_normalised_with_nothing_known_is_as_it_was(script):
    """Mean 0 and std 1 at first, one number for each of an observation, saved with the weights."""
    agent = script.Agent(script.Args(normalize_observations=True), 4, 2, "cpu")
    obs = randn(3, 4, seed=0, dtype=torch.float32)
    assert torch.equal(agent.normalize(obs), obs)
    state = agent.state_dict()
    assert state["obs_mean"].tolist() == [0] * 4 and state["obs_std"].tolist() == [1] * 4


def test_mean_and_std_are_the_datasets(script):
    """A number that never changes is not divided, or a small difference in the environment would
    drown all else; and means far from 0 lose no digits."""
    agent = script.Agent(script.Args(normalize_observations=True), 4, 2, "cpu")
    obs = np.random.default_rng(0).normal([0, 5, 1000, 7], [1, 2, 3, 0], (100_000, 4))
    script.set_normalization(agent, torch.from_numpy(obs.astype(np.float32)))
    np.testing.assert_allclose(agent.obs_mean, obs.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(agent.obs_std[:3], obs[:, :3].std(0) + 1e-3, rtol=1e-4)
    assert agent.obs_std[3] == 1
    seen = agent.normalize(torch.from_numpy(obs.astype(np.float32)))
    assert seen.isfinite().all() and seen[:, 3].abs().max() < 0.01
    np.testing.assert_allclose(seen[:, :3].std(0), 1, atol=2e-3)


# --- Acting, and the hook before fine-tuning ------------------------------------------------------


def test_acting_takes_observations_of_any_precision(script):
    """Environments give float64 as often as float32."""
    agent, batch, _ = small_problem(script, torch.float32)
    wanted = agent.act(batch.obs)
    for dtype in (torch.float64, torch.float16):
        found = agent.act(batch.obs.to(dtype))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-2)


def test_before_finetuning_nothing_is_played_and_nothing_changes(script):
    agent, _, _ = small_problem(script, torch.float32)
    buffer = script.ReplayBuffer(agent.args, torch.ones(3, 13), 4, 2, "cpu")
    before = copy.deepcopy((agent.state_dict(), buffer.state_dict()))
    assert agent.begin_finetuning(buffer) == 0
    torch.testing.assert_close((agent.state_dict(), buffer.state_dict()), before, rtol=0, atol=0)
