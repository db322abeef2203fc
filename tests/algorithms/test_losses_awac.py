"""The losses of awac.py, line by line and by hand. What it shares with iql.py, such as the
policy's density and the numbers of calibration, is tested in test_losses_awr.py."""

import math

import pytest
import torch
from scripts import (
    at_the_edge,
    check_critic_loss,
    check_losses_train_their_own,
    check_updates_take_turns,
    load_script,
    log_density_by_hand,
    small_problem,
    weights_of,
)

EDGE = 1 - 1e-5


@pytest.fixture
def awac():
    return load_script("awac")


def inside(batch) -> torch.Tensor:
    rows = [[min(max(x, -EDGE), EDGE) for x in row] for row in batch.actions.tolist()]
    return torch.tensor(rows, dtype=batch.actions.dtype)


def q_by_hand(critic, obs, action) -> list[float]:
    return [net(torch.cat([obs, action])).item() for net in critic.nets]


def advantages_by_hand(agent, batch, noise) -> list[float]:
    """The lower Q of the data's action, over the lower of the critics' mean Q of samples."""
    found = []
    for b, action in enumerate(inside(batch)):
        mean, log_std = agent.actor(batch.obs[b])
        samples = [mean + log_std.exp() * draw for draw in noise["actor"][b]]
        judged = [q_by_hand(agent.critic, batch.obs[b], sample) for sample in samples]
        v1, v2 = (sum(column) / len(samples) for column in zip(*judged))
        found.append(min(q_by_hand(agent.critic, batch.obs[b], action)) - min(v1, v2))
    return found


def softmax_by_hand(advantages, awac_lambda) -> list[float]:
    odds = [math.exp(a / awac_lambda) for a in advantages]
    return [x / sum(odds) for x in odds]


def with_q_of_the_data(awac, q, dtype=torch.float64, **settings):
    """A problem in which the data's actions have the Q-values given, and all of the policy's 1."""
    agent, batch, noise = small_problem(awac, dtype, batch_size=len(q), **settings)
    of_the_data = torch.tensor(q, dtype=dtype)[:, None]

    def judge(obs, actions):
        mine = actions.shape[1] == 1  # the policy has three
        return (of_the_data if mine else torch.ones(len(q), 3, dtype=dtype)).expand(2, -1, -1)

    agent.critic.forward = judge
    return agent, batch, noise


# --- The policy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("awac_lambda", [1.0, 0.3])
def test_the_policys_loss_by_hand(awac, awac_lambda):
    """The edges of the box are left out of the data in advantage and density."""
    agent, batch, noise = small_problem(awac, awac_lambda=awac_lambda)
    batch = at_the_edge(batch)
    advantages = advantages_by_hand(agent, batch, noise)
    assert min(advantages) < 0 < max(advantages)
    weights = softmax_by_hand(advantages, awac_lambda)
    log_densities = log_density_by_hand(*agent.actor(batch.obs), inside(batch))
    loss, metrics = agent.actor_loss(batch, noise)
    total = sum(weight * x for weight, x in zip(weights, log_densities))
    assert loss.item() == pytest.approx(-total, rel=1e-9)
    assert metrics["loss/actor"] == loss


def test_the_value_is_the_lower_of_two_means(awac):
    """Not the mean of the lower, and of samples beyond the box too: the example tells."""
    agent, batch, noise = small_problem(awac)
    mean, log_std = agent.actor(batch.obs)
    samples = mean[:, None] + log_std.exp() * noise["actor"]
    assert (samples.abs() > 1).any()
    q = agent.critic(batch.obs, samples)
    assert not torch.isclose(q.mean(-1).amin(0), q.amin(0).mean(-1)).all()
    judged = []
    agent.critic.register_forward_hook(lambda _, inputs, q: judged.append(inputs[1]))
    agent.actor_loss(batch, noise)
    torch.testing.assert_close(judged, [samples.detach(), batch.actions[:, None]])


def test_weights_are_shares_of_one(awac):
    """Larger advantages have larger ones, by exp of the difference over lambda."""
    agent, batch, noise = small_problem(awac, batch_size=64, awac_lambda=0.3)
    weights = weights_of(agent, batch, noise)
    assert (weights >= 0).all() and weights.sum().item() == pytest.approx(1, rel=1e-9)
    advantages = torch.tensor(advantages_by_hand(agent, batch, noise), dtype=weights.dtype)
    assert torch.equal(weights.argsort(), advantages.argsort())
    ratios = ((advantages - advantages[0]) / 0.3).exp()
    torch.testing.assert_close(weights / weights[0], ratios)


def test_what_all_have_in_common_does_not_count(awac):
    """The batch shares out a total of 1: five times the same is a fifth each, whatever it is."""
    for q in (-40.0, 0.0, 1e4):
        agent, batch, noise = with_q_of_the_data(awac, [q] * 5, awac_lambda=0.01)
        torch.testing.assert_close(weights_of(agent, batch, noise), torch.full((5,), 0.2).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lambda_between_all_actions_and_one(awac, dtype):
    """Large: behaviour cloning. Small: the best action of the batch alone, without an overflow."""
    q = [0.0, -3.0, 5.0, 4.0]
    wanted = {1e9: [0.25] * 4, 1e-6: [0, 0, 1, 0], 1.0: softmax_by_hand(q, 1.0)}
    for awac_lambda, weights in wanted.items():
        agent, batch, noise = with_q_of_the_data(awac, q, dtype, awac_lambda=awac_lambda)
        found = weights_of(agent, batch, noise)
        torch.testing.assert_close(found, torch.tensor(weights, dtype=dtype), rtol=1e-4, atol=1e-9)
        loss, metrics = agent.actor_loss(batch, noise)
        effective = 1 / (4 * sum(weight**2 for weight in weights))
        assert metrics["pi/effective"].item() == pytest.approx(effective, rel=1e-4)
        loss.backward()
        assert all(torch.isfinite(value) for value in metrics.values())
        assert all(torch.isfinite(parameter.grad).all() for parameter in agent.actor.parameters())


# --- The critics ----------------------------------------------------------------------------------


def test_the_critics_loss_by_hand(awac):
    """The target asks the slow critics about a sample at s', which may lie beyond the box, and says
    nothing of its density; past a termination there is nothing. The data are taken as they are."""
    agent, batch, noise = small_problem(awac, gamma=0.9)
    batch = at_the_edge(batch)
    assert batch.terminations[:, 0].tolist() == [0, 1, 0, 0, 1, 0]
    y, n_beyond = [], 0
    for b in range(6):
        y.append(batch.rewards[b].item())
        if b not in (1, 4):
            mean, log_std = agent.actor(batch.next_obs[b])
            action = mean + log_std.exp() * noise["target"][b]
            n_beyond += (action.abs() > 1).any().item()
            y[b] += 0.9 * min(q_by_hand(agent.critic_target, batch.next_obs[b], action))
    assert n_beyond
    check_critic_loss(agent, batch, agent.critic_loss(batch, noise), y)


# --- Who learns from what -------------------------------------------------------------------------


def test_every_loss_trains_its_own_parameters(awac):
    agent, batch, noise = small_problem(awac)
    agent.critic_target.requires_grad_(True)  # were it asked, it would carry a gradient
    batch.rewards.requires_grad_(True)
    batch.next_obs.requires_grad_(True)
    parameters = {
        "actor": list(agent.actor.parameters()),
        "critic": list(agent.critic.parameters()),
        "target": [*agent.critic_target.parameters(), batch.rewards, batch.next_obs],
    }
    losses = {"actor": agent.actor_loss(batch, noise)[0]}
    losses["critic"] = agent.critic_loss(batch, noise)[0]
    check_losses_train_their_own(losses, parameters)


def test_an_update_takes_turns_and_then_the_targets_follow(awac):
    """First the critics, then the policy by the new critics; its weights alone decay."""
    rates = dict(actor_lr=0.02, critic_lr=0.05, weight_decay=0.5)
    agent, batch, _ = small_problem(awac, tau=0.1, **rates)

    def turns(hand):
        policy = torch.optim.AdamW(hand.actor.parameters(), lr=0.02, weight_decay=0.5)
        critics = torch.optim.Adam(hand.critic.parameters(), lr=0.05)
        return [(critics, hand.critic_loss), (policy, hand.actor_loss)]

    check_updates_take_turns(agent, batch, turns)


# --- Draws ----------------------------------------------------------------------------------------


def test_what_an_update_draws(awac):
    agent, _, _ = small_problem(awac, n_actions=5)
    noise, again, other = (
        agent.draw(2000, torch.Generator().manual_seed(seed), log=False) for seed in (0, 0, 1)
    )
    shapes = {"target": (2000, 2), "actor": (2000, 5, 2)}
    assert {name: tuple(x.shape) for name, x in noise.items()} == shapes
    for name, x in noise.items():
        assert x.mean().item() == pytest.approx(0, abs=0.05)
        assert x.std().item() == pytest.approx(1, abs=0.05)
        assert torch.equal(x, again[name]) and not torch.equal(x, other[name])
    # pi(.|s') in y and pi(.|s) in A are drawn apart, and each of the latter too.
    flat = torch.cat([x.flatten() for x in noise.values()])
    assert len(flat.unique()) > 0.99 * len(flat)


def test_a_single_action_of_the_policy_is_enough(awac):
    """The default, and the paper's: V is then the lower Q of one sample."""
    assert awac.Args().n_actions == 1
    agent, batch, noise = small_problem(awac, n_actions=1)
    wanted = softmax_by_hand(advantages_by_hand(agent, batch, noise), 1.0)
    assert weights_of(agent, batch, noise).tolist() == pytest.approx(wanted, rel=1e-9)
