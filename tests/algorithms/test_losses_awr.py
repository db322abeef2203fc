"""What the agents of iql.py and awac.py share, advantage-weighted regression: the policy, what it
makes of weights, the numbers of calibration, draws and first weights. The weights themselves and
the critics' losses are tested in test_losses_iql.py and test_losses_awac.py."""

import copy
import math

import pytest
import torch
from scripts import (
    AWR_FAMILY,
    CALIBRATION_KEYS,
    SCRIPTS,
    answer,
    check_initial_weights,
    load_script,
    log_density_by_hand,
    loss_of,
    randn,
    small_problem,
    weights_of,
)

# All advantages count the same: beta times them is 0, or next to 0 where they are divided.
PLAIN = {"iql": dict(beta=0.0), "awac": dict(awac_lambda=1e9)}
SHARP = {"iql": dict(beta=30.0), "awac": dict(awac_lambda=1 / 30)}


@pytest.fixture(params=AWR_FAMILY)
def script(request):
    return load_script(request.param)


# --- The policy -----------------------------------------------------------------------------------


def test_the_mean_is_squashed_and_the_std_the_same_everywhere(script):
    agent, batch, _ = small_problem(script)
    mean, log_std = agent.actor(batch.obs)
    torch.testing.assert_close(mean, agent.actor.net(batch.obs).tanh(), rtol=1e-12, atol=0)
    assert torch.equal(log_std, agent.actor.log_std) and log_std.shape == (2,)
    assert len(set(log_std.tolist())) == 2, "each number of an action has its own"


def test_the_log_std_is_bounded(script):
    agent, batch, _ = small_problem(script)
    for value, bound in (-1e3, {"iql": -5, "awac": -10}[script.__name__]), (1e3, 2):
        agent.actor.log_std.data.fill_(value)
        assert (agent.actor(batch.obs)[1] == bound).all()


def test_without_weights_it_is_behaviour_cloning(script):
    """The density is that of the Gaussian itself: no tanh is between a sample and its action."""
    agent, batch, noise = small_problem(script, **PLAIN[script.__name__])
    log_densities = log_density_by_hand(*agent.actor(batch.obs), batch.actions)
    loss, metrics = loss_of(agent, "actor", batch, noise)
    assert loss.item() == pytest.approx(-sum(log_densities) / 6, rel=1e-7)
    assert metrics["pi/effective"].item() == pytest.approx(1, rel=1e-7)
    torch.testing.assert_close(weights_of(agent, batch, noise), torch.full((6,), 1 / 6).double())


@pytest.mark.parametrize("better", [1, -1])
def test_a_step_raises_the_density_of_the_better_action_more(script, better):
    """Two actions at one state, on the two sides of the mean: without weights a step against the
    gradient treats them alike, with weights it goes to the better one."""

    def gains(settings):
        agent, batch, noise = small_problem(script, batch_size=2, **settings)
        with torch.no_grad():
            agent.actor.net[-1].weight.zero_()
            agent.actor.net[-1].bias.zero_()
        batch = batch._replace(obs=batch.obs[:1].expand(2, -1))
        batch = batch._replace(actions=torch.tensor([[0.3, 0.4], [-0.3, -0.4]]).double())
        for critic in (agent.critic, agent.critic_target):  # Q rises, or falls, with the action
            critic.forward = lambda obs, actions: better * actions.sum(-1).expand(2, -1, -1)
        if "value" in agent.optimizers:
            answer(agent.value, torch.zeros(2, 1).double())
        before = log_density_by_hand(*agent.actor(batch.obs), batch.actions)
        loss, _ = loss_of(agent, "actor", batch, noise)
        loss.backward()
        with torch.no_grad():
            for parameter in agent.actor.parameters():
                parameter -= 1e-2 * parameter.grad
        after = log_density_by_hand(*agent.actor(batch.obs), batch.actions)
        return [y - x for x, y in zip(before, after)][::better]

    best, worst = gains(SHARP[script.__name__])
    assert best > max(worst, 0)
    best, worst = gains(PLAIN[script.__name__])
    assert best == pytest.approx(worst, rel=1e-6) and best > 0


def test_what_is_logged_of_the_weights_and_the_policy(script):
    agent, batch, noise = small_problem(script)
    metrics = loss_of(agent, "actor", batch, noise)[1]
    assert metrics.keys() == {"loss/actor", "pi/effective", "pi/entropy"}
    weights = weights_of(agent, batch, noise).tolist()
    effective = sum(weights) ** 2 / (6 * sum(weight**2 for weight in weights))
    assert 1 / 6 < effective < 0.99
    assert metrics["pi/effective"].item() == pytest.approx(effective, rel=1e-9)
    entropy = sum(0.5 * math.log(2 * math.pi * math.e) + x for x in agent.actor.log_std.tolist())
    assert metrics["pi/entropy"].item() == pytest.approx(entropy, rel=1e-12)
    # Its expectation is what it says: the density's logarithm, under the policy.
    mean, log_std = agent.actor(batch.obs[:1].expand(10_000, -1))
    actions = mean + log_std.exp() * randn(*mean.shape, seed=0)
    found = log_density_by_hand(mean, log_std, actions)
    assert -sum(found) / len(found) == pytest.approx(entropy, abs=0.05)


def test_acting(script):
    """The mode is the mean, without a generator; a sample is cut off at the box of actions."""
    agent, batch, _ = small_problem(script, torch.float32, batch_size=64)
    mean, log_std = agent.actor(batch.obs)
    assert torch.equal(agent.act(batch.obs), mean)
    torch.testing.assert_close(agent.act(batch.obs[0]), mean[0])
    sample, again = (agent.act(batch.obs, torch.Generator().manual_seed(3)) for _ in range(2))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    free = mean + log_std.exp() * noise
    assert (free > 1).any() and (free < -1).any()
    wanted = [[min(max(x, -1), 1) for x in row] for row in free.tolist()]
    torch.testing.assert_close(sample, torch.tensor(wanted))
    assert torch.equal(sample, again)
    assert not sample.requires_grad and not agent.act(batch.obs).requires_grad


# --- Calibration ----------------------------------------------------------------------------------


def test_the_numbers_of_calibration_by_hand(script):
    """One action after the other, all of them judged at s, by both critics and not their slow
    copies; what the policy draws is cut off at the box, as it is when it is played."""
    agent, batch, noise = small_problem(script)
    q = {"data": [], "random": [], "policy": []}
    gaps, n_beyond = [], 0
    for b in range(6):
        drawn = [("data", batch.actions[b]), *(("random", action) for action in noise["random"][b])]
        for i, obs in enumerate((batch.obs[b], batch.next_obs[b])):
            mean, log_std = agent.actor(obs)
            for draw in noise["policy"][b, i]:
                free = mean + log_std.exp() * draw
                played = [min(max(x, -1.0), 1.0) for x in free.tolist()]
                n_beyond += played != free.tolist()
                drawn.append(("policy", torch.tensor(played, dtype=free.dtype)))
        for (origin, action), net in ((x, net) for x in drawn for net in agent.critic.nets):
            q[origin].append(net(torch.cat([batch.obs[b], action])).item())
            if origin == "policy":
                gaps.append(q[origin][-1] - batch.mc_returns[b].item())
    assert n_beyond > 10 and [len(x) for x in q.values()] == [12, 120, 240]

    metrics = script.calibration(agent, batch, noise)
    assert metrics.keys() == CALIBRATION_KEYS
    for origin, values in q.items():
        found = metrics[f"q/{origin}"].item()
        assert found == pytest.approx(sum(values) / len(values), rel=1e-12)
    assert metrics["calibration/gap"].item() == pytest.approx(sum(gaps) / 240, rel=1e-12)
    rate = sum(gap < 0 for gap in gaps) / 240
    assert 0.1 < rate < 0.9
    assert metrics["calibration/rate"].item() == pytest.approx(rate, rel=1e-6)
    assert not any(value.requires_grad for value in metrics.values())


def test_a_return_that_is_reached_is_not_missed(script):
    """The rate counts values below the return; one that equals it is calibrated."""
    agent, batch, noise = small_problem(script)
    answer(agent.critic, torch.ones(2, 6, 31).double())
    batch = batch._replace(mc_returns=torch.tensor([1.0, 1, 1, 2, 0, 0]).double()[:, None])
    metrics = script.calibration(agent, batch, noise)
    assert metrics["calibration/rate"].item() == pytest.approx(1 / 6)
    assert metrics["calibration/gap"].item() == pytest.approx(1 / 6)


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_is_logged_changes_no_weight(name):
    """Bit for bit: the draws for the log come after those that train. CQL and Cal-QL need all of
    theirs anyway, so their log has the numbers always, the others' where they were drawn for."""
    agent, batch, _ = small_problem(load_script(name), torch.float32)
    silent = copy.deepcopy(agent)
    for k in range(2):
        generators = [torch.Generator().manual_seed(k) for _ in range(2)]
        noise, less = agent.draw(6, generators[0]), silent.draw(6, generators[1], log=False)
        assert less.keys() <= noise.keys()
        assert all(torch.equal(noise[key], less[key]) for key in less)
        found, fewer = agent.update(batch, noise), silent.update(batch, less)
        assert CALIBRATION_KEYS <= found.keys() and fewer.keys() <= found.keys()
        if name in AWR_FAMILY:
            assert noise.keys() - less.keys() == {"policy", "random"}
            assert found.keys() - fewer.keys() == CALIBRATION_KEYS
        assert all(torch.equal(found[key], fewer[key]) for key in fewer)
    states = agent.state_dict(), silent.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_draws_for_the_log(script):
    agent, _, _ = small_problem(script)
    noise, again, other = (
        agent.draw(2000, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(x, again[name]) for name, x in noise.items())
    assert noise["policy"].shape == (2000, 2, 10, 2) and noise["random"].shape == (2000, 10, 2)
    assert noise["policy"].mean().item() == pytest.approx(0, abs=0.02)
    assert noise["policy"].std().item() == pytest.approx(1, abs=0.02)
    assert noise["random"].min().item() == pytest.approx(-1, abs=0.01)
    assert noise["random"].max().item() == pytest.approx(1, abs=0.01)
    assert noise["random"].std().item() == pytest.approx(1 / math.sqrt(3), abs=0.01)
    assert len(noise["policy"].unique()) > 0.99 * noise["policy"].numel()
    assert not torch.equal(noise["policy"], other["policy"])
    assert not torch.equal(noise["random"], other["random"])


# --- Who learns from what -------------------------------------------------------------------------


def test_a_loss_leaves_no_gradient_elsewhere(script):
    """In no network but its own, whatever else it asks."""
    for name in small_problem(script)[0].optimizers:
        agent, batch, noise = small_problem(script)
        loss_of(agent, name, batch, noise)[0].backward()
        for parameter, tensor in agent.named_parameters():
            assert (tensor.grad is not None) == (parameter.split(".")[0] == name), parameter


# --- First weights --------------------------------------------------------------------------------


def test_initial_weights(script):
    """Orthogonal with gain sqrt(2), the last layers' too, and at first a std of 1."""
    hidden = dict(actor_hidden=(16, 8), critic_hidden=(16, 16, 8))
    widths = [[16, 8, 2], [16, 16, 8, 1], [16, 16, 8, 1]]
    if script.__name__ == "iql":
        hidden["value_hidden"] = (12,)
        widths.append([12, 1])
    agent = script.Agent(script.Args(**hidden), 4, 2, "cpu")
    check_initial_weights(agent, widths, output_gain=math.sqrt(2))
    assert agent.actor.log_std.tolist() == [0, 0] and agent.actor.log_std.requires_grad
