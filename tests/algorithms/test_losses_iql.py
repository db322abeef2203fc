"""The losses of iql.py, line by line and by hand. What it shares with awac.py, such as the
policy's density and the numbers of calibration, is tested in test_losses_awr.py."""

import math

import pytest
import torch
from scripts import (
    answer,
    at_the_edge,
    check_critic_loss,
    check_losses_train_their_own,
    check_updates_take_turns,
    load_script,
    log_density_by_hand,
    noise_for,
    small_problem,
    weights_of,
)


@pytest.fixture
def iql():
    return load_script("iql")


def advantages_by_hand(agent, batch) -> list[float]:
    """min_i Q'_i(s, a) - V(s), by the slow critics."""
    found = []
    for obs, action in zip(batch.obs, batch.actions):
        q1, q2 = (net(torch.cat([obs, action])).item() for net in agent.critic_target.nets)
        found.append(min(q1, q2) - agent.value(obs).item())
    return found


def with_advantages(iql, advantages, dtype=torch.float64, **settings):
    """A problem in which V is 1 and the lower slow critic above that by as much as given."""
    agent, batch, noise = small_problem(iql, dtype, batch_size=len(advantages), **settings)
    q = torch.tensor(advantages, dtype=dtype)[:, None] + 1
    answer(agent.critic_target, torch.stack([q + 0.5, q]))
    answer(agent.value, torch.ones(len(advantages), 1, dtype=dtype).requires_grad_(True))
    return agent, batch, noise


# --- The value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("expectile", [0.7, 0.1, 0.9])
def test_the_values_loss_by_hand(iql, expectile):
    agent, batch, noise = small_problem(iql, expectile=expectile)
    advantages = advantages_by_hand(agent, batch)
    assert min(advantages) < 0 < max(advantages)
    total = sum((expectile if a > 0 else 1 - expectile) * a**2 for a in advantages)
    loss, metrics = agent.value_loss(batch, agent.min_slow_q(batch))
    assert loss.item() == pytest.approx(total / 6, rel=1e-12)
    assert metrics == {"loss/value": loss}


def test_a_value_below_q_costs_more_than_one_above_it(iql):
    """A = 2 and A = -2 with e = 0.9: 0.9 * 4 and 0.1 * 4."""
    for advantage, cost in (2.0, 3.6), (-2.0, 0.4):
        agent, batch, noise = with_advantages(iql, [advantage], expectile=0.9)
        loss, _ = agent.value_loss(batch, agent.min_slow_q(batch))
        assert loss.item() == pytest.approx(cost)
        [gradient] = torch.autograd.grad(loss, agent.value(batch.obs))
        assert gradient.item() == pytest.approx(-2 * cost / advantage)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_the_best_value_is_the_expectile(iql, expectile):
    """Of Q = 0 and Q = 1, equally often, it is e: at V = e the two pull with the same force."""
    agent, batch, noise = with_advantages(iql, [0 - expectile, 1 - expectile], expectile=expectile)
    loss, _ = agent.value_loss(batch, agent.min_slow_q(batch))
    [gradient] = torch.autograd.grad(loss, agent.value(batch.obs))
    assert gradient.abs().min() > 0 and gradient.sum().item() == pytest.approx(0, abs=1e-12)


def test_with_expectile_one_half_the_values_loss_is_half_the_squared_error(iql):
    agent, batch, noise = small_problem(iql, expectile=0.5)
    q = agent.critic_target(batch.obs, batch.actions[:, None]).amin(0)
    half = 0.5 * torch.nn.functional.mse_loss(agent.value(batch.obs), q)
    torch.testing.assert_close(
        agent.value_loss(batch, agent.min_slow_q(batch))[0], half, rtol=1e-12, atol=0
    )


# --- The policy -----------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [3.0, 10.0])
def test_the_policys_loss_by_hand(iql, beta):
    """Actions at the edge of the box are taken as they are."""
    agent, batch, noise = small_problem(iql, beta=beta)
    batch = at_the_edge(batch)
    weights = [min(math.exp(beta * a), 100) for a in advantages_by_hand(agent, batch)]
    log_densities = log_density_by_hand(*agent.actor(batch.obs), batch.actions)
    loss, metrics = agent.actor_loss(batch, agent.min_slow_q(batch), noise)
    total = sum(weight * x for weight, x in zip(weights, log_densities))
    assert loss.item() == pytest.approx(-total / 6, rel=1e-12)
    assert metrics["loss/actor"] == loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_are_limited_at_100(iql, dtype):
    """Far beyond it exp is inf, and stays so in the loss and in the gradient unless it is cut."""
    exponents = [0.0, 1.0, math.log(99), math.log(101), 1e6, -1e6]
    agent, batch, noise = with_advantages(iql, [x / 2 for x in exponents], dtype, beta=2.0)
    found = 6 * weights_of(agent, batch, noise)
    wanted = torch.tensor([1, math.e, 99, 100, 100, 0], dtype=dtype)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=0)
    loss, metrics = agent.actor_loss(batch, agent.min_slow_q(batch), noise)
    loss.backward()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert all(torch.isfinite(parameter.grad).all() for parameter in agent.actor.parameters())


def test_with_beta_0_the_critics_have_no_say(iql):
    agent, batch, noise = small_problem(iql, beta=0.0)
    before = agent.actor_loss(batch, agent.min_slow_q(batch), noise)[0]
    answer(agent.critic_target, 1e3 * batch.rewards.expand(2, -1, -1))
    assert torch.equal(agent.actor_loss(batch, agent.min_slow_q(batch), noise)[0], before)


def test_one_action_may_be_all_that_counts(iql):
    agent, batch, noise = with_advantages(iql, [-1e6, -1e6, 0.0, -1e6])
    metrics = agent.actor_loss(batch, agent.min_slow_q(batch), noise)[1]
    assert metrics["pi/effective"].item() == pytest.approx(1 / 4)


# --- A std for good -------------------------------------------------------------------------------


@pytest.mark.parametrize("fixed_log_std", [math.log(0.03), 0.0, 0.5])
def test_a_fixed_std_is_used_and_stays(iql, fixed_log_std):
    args = iql.Args(actor_hidden=(8,), critic_hidden=(8,), value_hidden=(8,), batch_size=6)
    args.fixed_log_std = fixed_log_std
    agent = iql.Agent(args, 4, 2, "cpu")
    _, batch, _ = small_problem(iql, torch.float32)
    wanted = torch.tensor([fixed_log_std] * 2)
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    for k in range(2):
        agent.update(batch, agent.draw(6, torch.Generator().manual_seed(k)))
        mean, log_std = agent.actor(batch.obs)
        assert torch.equal(log_std, wanted)
        sample = agent.act(batch.obs, torch.Generator().manual_seed(1))
        torch.testing.assert_close(sample, (mean + wanted.exp() * noise).clamp(-1, 1))
    # A learned one starts at 0 and moves.
    args.fixed_log_std = None
    agent = iql.Agent(args, 4, 2, "cpu")
    agent.update(batch, noise_for(agent, 0, torch.float32))
    assert (agent.actor.log_std != 0).all()


# --- Dropout --------------------------------------------------------------------------------------


def test_what_an_update_draws(iql):
    """Masks for each hidden layer, which leave out their share and make up for it."""
    settings = dict(dropout=0.3, actor_hidden=(8, 5))
    agent, _, _ = small_problem(iql, **settings)
    noise, again, other = (
        agent.draw(2000, torch.Generator().manual_seed(seed), log=False) for seed in (0, 0, 1)
    )
    assert {key: mask.shape for key, mask in noise.items()} == {
        "dropout0": (2000, 8),
        "dropout1": (2000, 5),
    }
    for key, mask in noise.items():
        values, counts = mask.unique(return_counts=True)
        torch.testing.assert_close(values, torch.tensor([0, 1 / 0.7]))
        assert (counts[0] / counts.sum()).item() == pytest.approx(0.3, abs=0.02)
        assert torch.equal(mask, again[key]) and not torch.equal(mask, other[key])
        assert (mask.std(0) > 0.5).all() and (mask.std(1) > 0).any(), "for each row and unit anew"
    assert not torch.equal(noise["dropout0"][:, :5], noise["dropout1"])


def test_without_dropout_nothing_is_drawn(iql):
    agent, _, _ = small_problem(iql)
    assert agent.draw(6, torch.Generator().manual_seed(0), log=False) == {}


def test_dropout_by_hand(iql):
    """A mask multiplies what leaves the ReLU of its own layer; the mean itself is whole."""
    agent, batch, noise = small_problem(iql, dropout=0.4, actor_hidden=(8, 8, 8), beta=0.0)
    *hidden, last = agent.actor.net[::2]
    means = []
    for b in range(6):
        x = batch.obs[b]
        for i, layer in enumerate(hidden):
            x = (layer.weight @ x + layer.bias).clamp(min=0) * noise[f"dropout{i}"][b]
        means.append((last.weight @ x + last.bias).tanh())
    assert len(hidden) == 3
    log_densities = log_density_by_hand(torch.stack(means), agent.actor.log_std, batch.actions)
    loss, _ = agent.actor_loss(batch, agent.min_slow_q(batch), noise)
    assert loss.item() == pytest.approx(-sum(log_densities) / 6, rel=1e-12)


def test_dropout_is_for_the_policys_loss_alone(iql):
    """Neither playing nor evaluation nor any other loss leaves out a unit."""
    agent, batch, noise = small_problem(iql, dropout=0.9)
    whole = {key: value for key, value in noise.items() if not key.startswith("dropout")}
    assert noise.keys() - whole.keys() == {"dropout0"}
    assert iql.calibration(agent, batch, noise) == iql.calibration(agent, batch, whole)
    assert not torch.isclose(
        agent.actor_loss(batch, agent.min_slow_q(batch), noise)[0],
        agent.actor_loss(batch, agent.min_slow_q(batch), whole)[0],
    )

    agent, batch, _ = small_problem(iql, torch.float32, dropout=0.9)
    plain, _, _ = small_problem(iql, torch.float32)  # has the same weights
    for seed in (None, 3):
        actions = (
            x.act(batch.obs, None if seed is None else torch.Generator().manual_seed(seed))
            for x in (agent, plain)
        )
        assert torch.equal(*actions)


# --- The critics ----------------------------------------------------------------------------------


def test_the_critics_loss_by_hand(iql):
    """The target is V at s', past a termination nothing; actions at the edge are not moved."""
    agent, batch, noise = small_problem(iql, gamma=0.9)
    batch = at_the_edge(batch)
    assert batch.terminations[:, 0].tolist() == [0, 1, 0, 0, 1, 0]
    y = []
    for b in range(6):
        y.append(batch.rewards[b].item())
        if b not in (1, 4):
            y[b] += 0.9 * agent.value(batch.next_obs[b]).item()
    check_critic_loss(agent, batch, agent.critic_loss(batch), y)


# --- Who learns from what -------------------------------------------------------------------------


def test_every_loss_trains_its_own_parameters(iql):
    agent, batch, noise = small_problem(iql, dropout=0.2)
    agent.critic_target.requires_grad_(True)  # were it asked, it would carry a gradient
    batch.rewards.requires_grad_(True)
    batch.next_obs.requires_grad_(True)
    parameters = {
        "value": list(agent.value.parameters()),
        "actor": list(agent.actor.parameters()),
        "critic": list(agent.critic.parameters()),
        "target": [batch.rewards, batch.next_obs],
    }
    losses = {"actor": agent.actor_loss(batch, agent.min_slow_q(batch), noise)[0]}
    losses["critic"] = agent.critic_loss(batch)[0]
    slow = {"slow critics": list(agent.critic_target.parameters())}
    check_losses_train_their_own(losses, parameters | slow)
    agent.critic_target.requires_grad_(False)  # as it always is: V's loss may then ask it freely
    losses["value"] = agent.value_loss(batch, agent.min_slow_q(batch))[0]
    check_losses_train_their_own(losses, parameters)


def test_an_update_takes_turns_and_then_the_targets_follow(iql):
    """First V, then the policy by the new V, then the critics by the new V, at rates of their own;
    the slow critics follow when all is done."""
    rates = dict(value_lr=0.03, actor_lr=0.02, critic_lr=0.05)
    agent, batch, _ = small_problem(iql, tau=0.1, dropout=0.2, **rates)

    def turns(hand):
        return [
            (
                torch.optim.Adam(hand.value.parameters(), lr=0.03),
                lambda batch, noise: hand.value_loss(batch, hand.min_slow_q(batch)),
            ),
            (
                torch.optim.Adam(hand.actor.parameters(), lr=0.02),
                lambda batch, noise: hand.actor_loss(batch, hand.min_slow_q(batch), noise),
            ),
            (
                torch.optim.Adam(hand.critic.parameters(), lr=0.05),
                lambda batch, noise: hand.critic_loss(batch),
            ),
        ]

    check_updates_take_turns(agent, batch, turns)
