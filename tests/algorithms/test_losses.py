"""The losses of cql.py and cal_ql.py, line by line; those of the other scripts are tested in
test_losses_iql.py, test_losses_awac.py and, what those two share, test_losses_awr.py.

Where a test recomputes something, it does so in another way than the script: in loops, by hand, or
through the gradients that reach a Q-value.
"""

import copy
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from scripts import (
    CQL_FAMILY,
    answer,
    check_initial_weights,
    check_losses_train_their_own,
    check_same_weights,
    follow_by_hand,
    grads_of,
    load_script,
    noise_for,
    small_problem,
)

BOTH_SUMS = pytest.mark.parametrize("importance_sampling", [True, False], ids=["is", "no-is"])


@pytest.fixture(params=CQL_FAMILY)
def script(request):
    return load_script(request.param)


@pytest.fixture
def cal_ql():
    return load_script("cal_ql")


def judge(agent, batch, noise):
    """Runs critic_losses; returns its results, the Q-values in it and the gradients of the critics'
    losses to them, by the origin of the actions: dicts of (2, B, n)."""
    calls = []
    hook = agent.critic.register_forward_hook(lambda _, inputs, q: calls.append((*inputs, q)))
    losses, metrics = agent.critic_losses(batch, noise)
    hook.remove()
    [(obs, actions, q)] = calls
    assert torch.equal(obs, batch.obs), "all actions are judged at s"
    proposals = propose(agent, batch, noise)
    origins = {"data": batch.actions[:, None], "random": noise["random"]}
    origins |= {"pi(s)": proposals["s"][0], "pi(s')": proposals["s'"][0]}
    [gradient] = torch.autograd.grad(losses["critic"].sum(), q, retain_graph=True)
    columns = {}
    for origin, wanted in origins.items():
        same = (actions[:, :, None] - wanted[:, None]).abs().amax(-1) < 1e-12  # (B, all, n)
        assert (same.sum(1) == 1).all(), f"every action of {origin} is judged once"
        columns[origin] = same.float().argmax(1)[None].expand(2, -1, -1)
    assert sum(x.shape[-1] for x in columns.values()) == actions.shape[1], "and no other"
    parts = ({k: x.gather(-1, column) for k, column in columns.items()} for x in (q, gradient))
    return losses, {key: value.item() for key, value in metrics.items()}, *parts


def propose(agent, batch, noise):
    """The policy's actions and log-densities at s and at s' in the penalty, (B, n, act), (B, n)."""
    found = {}
    for i, (state, obs) in enumerate({"s": batch.obs, "s'": batch.next_obs}.items()):
        with torch.no_grad():
            mean, log_std = agent.actor(obs)
        draws = noise["policy"][:, i]
        normal = torch.distributions.Normal(mean[:, None], log_std[:, None].exp())
        u = mean[:, None] + log_std[:, None].exp() * draws
        # The textbook's change of variables, good where tanh is far from 1.
        log_density = normal.log_prob(u) - (1 - u.tanh() ** 2).log()
        found[state] = u.tanh(), log_density.sum(-1)
    return found


def target_by_hand(agent, batch, noise):
    """y (B,): max over actions of the min over target critics, one action after the other."""
    with torch.no_grad():
        mean, log_std = agent.actor(batch.next_obs)
        best = torch.full((len(mean),), -math.inf, dtype=mean.dtype)
        for k in range(noise["target"].shape[1]):
            action = (mean + log_std.exp() * noise["target"][:, k]).tanh()
            inputs = torch.cat([batch.next_obs, action], -1)
            q1, q2 = (net(inputs)[:, 0] for net in agent.critic_target.nets)
            best = torch.maximum(best, torch.minimum(q1, q2))
    return batch.rewards[:, 0] + agent.args.gamma * (1 - batch.terminations[:, 0]) * best


def gaps_by_hand(agent, batch, noise, q, returns=None):
    """E [log sum exp(Q - log mu) - Q(data)] of each critic, with plain numbers."""
    proposals = propose(agent, batch, noise)
    log_uniform = math.log(0.5) * batch.actions.shape[1]
    q = {origin: value.detach().numpy() for origin, value in q.items()}
    gaps = np.zeros((2, len(batch.obs)))
    for i, b in np.ndindex(gaps.shape):
        entries = [(x, log_uniform) for x in q["random"][i, b]]
        for state in ("s", "s'"):
            for x, log_density in zip(q[f"pi({state})"][i, b], proposals[state][1][b].tolist()):
                entries.append((x if returns is None else max(x, returns[b].item()), log_density))
        if not agent.args.importance_sampling:
            entries = [(x, 0.0) for x, _ in entries] + [(q["data"][i, b, 0], 0.0)]
        gaps[i, b] = np.log(sum(np.exp(x - log_mu) for x, log_mu in entries)) - q["data"][i, b, 0]
    return gaps.mean(1)


# --- The penalty ----------------------------------------------------------------------------------


@BOTH_SUMS
def test_the_critics_loss_by_hand(script, importance_sampling):
    agent, batch, noise = small_problem(script, importance_sampling=importance_sampling)
    losses, metrics, q, _ = judge(agent, batch, noise)
    calibrated = script.__name__ == "cal_ql"
    gaps = gaps_by_hand(agent, batch, noise, q, batch.mc_returns if calibrated else None)
    y = target_by_hand(agent, batch, noise)
    td = ((q["data"][:, :, 0] - y) ** 2).mean(1).detach().numpy()
    np.testing.assert_allclose(
        losses["critic"].detach(), td + agent.args.cql_weight * gaps, rtol=1e-12
    )
    np.testing.assert_allclose(metrics["q/gap"], gaps.mean(), rtol=1e-12)


@BOTH_SUMS
def test_the_penalty_lowers_q_of_sampled_actions_and_raises_it_in_the_data(
    script, importance_sampling
):
    settings = dict(importance_sampling=importance_sampling)
    agent, batch, noise = small_problem(script, cql_weight=2.0, **settings)
    batch = batch._replace(mc_returns=torch.full_like(batch.mc_returns, -1e3))
    gradient = judge(agent, batch, noise)[3]
    agent.args.cql_weight = 0.0  # the TD error alone, to be taken off
    td_gradient = judge(agent, batch, noise)[3]
    penalty = {origin: gradient[origin] - td_gradient[origin] for origin in gradient}

    assert all((penalty[origin] > 0).all() for origin in ("random", "pi(s)", "pi(s')"))
    assert (penalty["data"] < 0).all()
    # What is pushed down is pushed up in the data: the gap does not care for the height of Q.
    total = torch.cat(list(penalty.values()), -1).sum(-1)
    torch.testing.assert_close(total, torch.zeros_like(total))
    # The data's Q is in the sum without importance sampling only, where it is pushed down, too.
    full = -2.0 / len(batch.obs)
    in_the_sum = ~torch.isclose(penalty["data"], torch.tensor(full, dtype=torch.float64))
    assert in_the_sum.all() if not importance_sampling else not in_the_sum.any()


def test_actions_are_judged_by_the_share_of_their_origin(script):
    """With the same Q everywhere, importance sampling weighs an action by 1 / density."""
    agent, batch, noise = small_problem(script, cql_weight=1.0)
    for net in agent.critic.nets:
        torch.nn.init.zeros_(net[-1].weight)
    batch = batch._replace(mc_returns=torch.full_like(batch.mc_returns, -1e3))
    gradient = judge(agent, batch, noise)[3]
    densities = propose(agent, batch, noise)
    for state in ("s", "s'"):
        odds = gradient[f"pi({state})"] / gradient["random"][..., :1]
        uniform = 0.5 ** batch.actions.shape[1]
        torch.testing.assert_close(odds[0], uniform / densities[state][1].exp())


# --- Cal-QL's line --------------------------------------------------------------------------------


@BOTH_SUMS
@pytest.mark.parametrize("lagrange_gap", [None, 0.8], ids=["fixed", "lagrange"])
def test_with_returns_of_minus_infinity_cal_ql_is_cql(importance_sampling, lagrange_gap):
    """Bit for bit, after several updates of everything: the scripts differ by the line alone."""
    settings = dict(importance_sampling=importance_sampling, lagrange_gap=lagrange_gap)
    agents = []
    for name in ("cql", "cal_ql"):
        agent, batch, _ = small_problem(load_script(name), torch.float32, **settings)
        batch = batch._replace(mc_returns=torch.full_like(batch.mc_returns, -math.inf))
        for k in range(4):
            metrics = agent.update(batch, noise_for(agent, k, torch.float32))
        agents.append((agent.state_dict(), agent.optimizers["adam"].state_dict(), metrics))
    (cql, cql_adam, cql_metrics), (cal_ql, cal_ql_adam, cal_ql_metrics) = agents
    assert all(torch.equal(cql[name], cal_ql[name]) for name in cql)
    assert cql_metrics == cal_ql_metrics
    for state, other in zip(cql_adam["state"].values(), cal_ql_adam["state"].values()):
        assert all(torch.equal(state[key], other[key]) for key in state)


@BOTH_SUMS
def test_with_returns_above_every_q_no_policy_action_is_pushed(cal_ql, importance_sampling):
    """1e6: exactly zero, since max(Q, G) is a constant there."""
    agent, batch, noise = small_problem(cal_ql, importance_sampling=importance_sampling)
    for returns in (1e6, 20.0):
        above = batch._replace(mc_returns=torch.full_like(batch.mc_returns, returns))
        gradient = judge(agent, above, noise)[3]
        assert (gradient["pi(s)"] == 0).all() and (gradient["pi(s')"] == 0).all()
    # Random actions are not bounded: at 20 they still count beside exp(20), as they should.
    assert (gradient["random"] > 0).all()
    assert (gradient["data"] != 0).all()


@BOTH_SUMS
def test_the_bound_holds_for_each_q_by_itself(cal_ql, importance_sampling):
    agent, batch, noise = small_problem(cal_ql, importance_sampling=importance_sampling)
    _, _, q, gradient = judge(agent, batch, noise)
    for origin in ("pi(s)", "pi(s')"):
        below = q[origin] < batch.mc_returns
        assert below.any() and not below.all()
        assert torch.equal(gradient[origin] == 0, below)


def test_the_returns_bound_nothing_else(script):
    """Neither the targets nor the policy's loss see them; CQL does not see them at all."""
    agent, batch, noise = small_problem(script, cql_weight=0.0)
    above = batch._replace(mc_returns=batch.mc_returns + 10)
    for key, loss in agent.critic_losses(batch, noise)[0].items():
        assert torch.equal(loss, agent.critic_losses(above, noise)[0][key])
    for key, loss in agent.actor_losses(batch, noise)[0].items():
        assert torch.equal(loss, agent.actor_losses(above, noise)[0][key])
    agent.args.cql_weight = 1.0
    difference = agent.critic_losses(above, noise)[0]["critic"]
    difference = difference - agent.critic_losses(batch, noise)[0]["critic"]
    assert (difference > 0).all() if script.__name__ == "cal_ql" else (difference == 0).all()


def test_calibration_is_logged_before_the_line(script):
    """Both scripts tell how far Q is below the return; after the line it never would be."""
    agent, batch, noise = small_problem(script)
    _, metrics, q, _ = judge(agent, batch, noise)
    policy = torch.cat([q["pi(s)"], q["pi(s')"]], -1)
    assert metrics["q/policy"] == pytest.approx(policy.mean().item())
    assert metrics["q/data"] == pytest.approx(q["data"].mean().item())
    assert metrics["q/random"] == pytest.approx(q["random"].mean().item())
    rate, gap = (policy < batch.mc_returns).double(), policy - batch.mc_returns
    assert 0 < rate.mean() < 1
    assert metrics["calibration/rate"] == pytest.approx(rate.mean().item())
    assert metrics["calibration/gap"] == pytest.approx(gap.mean().item())


def test_a_return_that_is_reached_is_not_missed(script):
    """The rate counts values below the return; one that equals it is calibrated."""
    agent, batch, noise = small_problem(script)
    answer(agent.critic, torch.ones(2, 6, 10).double())
    batch = batch._replace(mc_returns=torch.tensor([1.0, 1, 1, 2, 0, 0]).double()[:, None])
    metrics = agent.critic_losses(batch, noise)[1]
    assert metrics["calibration/rate"].item() == pytest.approx(1 / 6)
    assert metrics["calibration/gap"].item() == pytest.approx(1 / 6)


# --- The target -----------------------------------------------------------------------------------


def test_the_target_takes_the_best_action_of_the_worst_critic(script):
    agent, batch, noise = small_problem(script, batch_size=64, cql_weight=0.0)
    _, _, q, gradient = judge(agent, batch, noise)
    y = q["data"] - gradient["data"] * len(batch.obs) / 2  # from d (Q - y)^2 / dQ
    torch.testing.assert_close(y[0, :, 0], target_by_hand(agent, batch, noise))
    torch.testing.assert_close(y[0], y[1])
    # The example tells the order: min over critics first, then max over actions.
    mean, log_std = agent.actor(batch.next_obs)
    actions = (mean[:, None] + log_std[:, None].exp() * noise["target"]).tanh()
    next_q = agent.critic_target(batch.next_obs, actions)
    going_on = batch.terminations[:, 0] == 0
    assert not torch.isclose(next_q.amin(0).amax(-1), next_q.amax(-1).amin(0))[going_on].all()


def test_termination_masks_what_follows_and_truncation_does_not(script):
    """A time limit is an end of the episode in the environment, but none of the task."""

    class Corridor:
        """Four steps to the goal; a time limit of 3 comes before it, one of 9 does not."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (4,))

        def __init__(self, limit):
            self.limit = limit

        def reset(self, seed):
            self.t = 0
            return np.zeros(4, np.float32), {}

        def step(self, action):
            self.t += 1
            goal = self.t == 4
            return np.full(4, self.t, np.float32), float(goal), goal, self.t == self.limit, {}

    agent, _, _ = small_problem(script, torch.float32, batch_size=1, cql_weight=0.0)
    for limit, bootstraps in (3, True), (9, False):
        episode = script.play_episode(agent, Corridor(limit), 0, script.StopSignal())
        rows = script.to_rows(agent.args, episode)
        assert len(rows) == min(limit, 4), "the last step of a time limit is data, too"
        buffer = script.ReplayBuffer(agent.args, rows, 4, 2, "cpu")
        batch = script.Batch(*rows[-1:].split(buffer.widths, 1))
        noise = noise_for(agent, 0, torch.float32)
        y = target_by_hand(agent, batch, noise)
        assert (y != batch.rewards[:, 0]).all() == bootstraps
        td = (agent.critic(batch.obs, batch.actions[:, None])[:, 0, 0] - y) ** 2
        torch.testing.assert_close(agent.critic_losses(batch, noise)[0]["critic"], td)


# --- Who learns from what -------------------------------------------------------------------------


@pytest.mark.parametrize("lagrange_gap", [None, 0.8], ids=["fixed", "lagrange"])
def test_every_loss_trains_its_own_parameters(script, lagrange_gap):
    agent, batch, noise = small_problem(script, lagrange_gap=lagrange_gap)
    agent.critic_target.requires_grad_(True)  # were it asked, the target would carry none either
    batch.rewards.requires_grad_(True)
    batch.next_obs.requires_grad_(True)
    parameters = {
        "actor": list(agent.actor.parameters()),
        "alpha": [agent.log_alpha],
        "critic 1": list(agent.critic.nets[0].parameters()),
        "critic 2": list(agent.critic.nets[1].parameters()),
        "lagrange": [agent.log_lagrange],
        "target": [*agent.critic_target.parameters(), batch.rewards, batch.next_obs],
    }
    critic, _ = agent.critic_losses(batch, noise)
    actor, _ = agent.actor_losses(batch, noise)
    losses = {"actor": actor["actor"], "alpha": actor["alpha"]}
    losses |= {"critic 1": critic["critic"][0], "critic 2": critic["critic"][1]}
    if lagrange_gap is None:
        assert not critic["lagrange"].requires_grad
    else:
        losses["lagrange"] = critic["lagrange"]
    check_losses_train_their_own(losses, parameters)


def test_the_actors_loss_leaves_the_critics_trainable(script):
    agent, batch, noise = small_problem(script)
    agent.actor_losses(batch, noise)[0]["actor"].backward()
    assert all(p.requires_grad and p.grad is None for p in agent.critic.parameters())


@pytest.mark.parametrize("lagrange_gap", [None, 0.8], ids=["fixed", "lagrange"])
def test_an_update_is_simultaneous_and_then_the_targets_follow(script, lagrange_gap):
    """All gradients are taken at the old weights, by hand one after the other on a copy."""
    settings = dict(lagrange_gap=lagrange_gap, tau=0.1, actor_lr=0.02, critic_lr=0.05)
    agent, batch, _ = small_problem(script, **settings)
    hand = copy.deepcopy(agent)
    policy = torch.optim.Adam([*hand.actor.parameters(), hand.log_alpha], lr=0.02)
    values = torch.optim.Adam([*hand.critic.parameters(), hand.log_lagrange], lr=0.05)
    own = {"actor": [*hand.actor.parameters()], "alpha": [hand.log_alpha]}
    own |= {"critic": [*hand.critic.parameters()], "lagrange": [hand.log_lagrange]}
    for k in range(3):
        noise = noise_for(agent, k)
        found = agent.update(batch, noise)
        slow = agent.critic_target.parameters()
        assert not any(x.requires_grad for x in (*found.values(), *slow)), "no graph is left"

        losses = hand.critic_losses(batch, noise)[0] | hand.actor_losses(batch, noise)[0]
        for name, loss in losses.items():
            if loss.requires_grad:
                for parameter, gradient in zip(own[name], grads_of(loss.sum(), own[name])):
                    parameter.grad = gradient
        policy.step()
        values.step()
        follow_by_hand(hand)
        check_same_weights(agent, hand)
    moved = agent.log_lagrange.item() != small_problem(script)[0].log_lagrange.item()
    assert moved == (lagrange_gap is not None)


# --- Policy and temperature -----------------------------------------------------------------------


def test_the_policys_loss_by_hand(script):
    agent, batch, noise = small_problem(script, target_entropy=-0.3)
    losses, metrics = agent.actor_losses(batch, noise)
    mean, log_std = agent.actor(batch.obs)
    u = mean + log_std.exp() * noise["actor"][:, 0]
    normal = torch.distributions.Normal(mean, log_std.exp())
    log_density = (normal.log_prob(u) - (1 - u.tanh() ** 2).log()).sum(-1)
    inputs = torch.cat([batch.obs, u.tanh()], -1)
    q = torch.minimum(*(net(inputs)[:, 0] for net in agent.critic.nets))
    alpha = agent.log_alpha.exp().item()
    torch.testing.assert_close(losses["actor"], (alpha * log_density - q).mean())
    target_entropy = -0.3 * 2  # per number of the action
    wanted = agent.log_alpha * (-log_density - target_entropy).mean()
    torch.testing.assert_close(losses["alpha"], wanted)
    assert metrics["pi/entropy"].item() == pytest.approx(-log_density.mean().item())
    assert metrics["pi/alpha"].item() == pytest.approx(alpha)
    assert metrics["loss/actor"] == losses["actor"]
    # A step against the gradient reaches it through the action: Q rises where alpha is 0.
    agent.log_alpha.data.fill_(-30)
    before = agent.actor_losses(batch, noise)[0]["actor"]
    before.backward()
    with torch.no_grad():
        for parameter in agent.actor.parameters():
            parameter -= 1e-3 * parameter.grad
    assert agent.actor_losses(batch, noise)[0]["actor"] < before


@pytest.mark.parametrize("std, grows", [(1e-3, True), (0.5, False)])
def test_the_temperature_grows_while_the_entropy_is_too_low(script, std, grows):
    agent, batch, noise = small_problem(script, target_entropy=-1.0)
    with torch.no_grad():
        agent.actor.net[-1].weight.zero_()
        agent.actor.net[-1].bias.zero_()
        agent.actor.log_std_offset.fill_(math.log(std))
    before = agent.log_alpha.item()
    metrics = agent.update(batch, noise)
    assert (metrics["pi/entropy"] < -2.0) == grows
    assert (agent.log_alpha.item() > before) == grows


@pytest.mark.parametrize("mean, log_std", [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.5), (0.3, -3.0)])
def test_the_density_of_an_action_integrates_to_one(script, mean, log_std):
    u = torch.linspace(-20, 20, 400_001, dtype=torch.float64)
    actions, log_density = script.squash(
        torch.tensor([mean]), torch.tensor([log_std]), ((u - mean) / math.exp(log_std))[:, None]
    )
    assert torch.trapezoid(log_density.exp(), actions[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_the_density_is_that_of_the_action(script):
    """It differs from action to action, and is the product over the action's dimensions."""
    noise = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, -2.0]], dtype=torch.float64)
    mean, log_std = torch.tensor([0.2, -0.4]).double(), torch.tensor([-0.5, 0.3]).double()
    actions, log_density = script.squash(mean, log_std, noise)
    u = mean + log_std.exp() * noise
    torch.testing.assert_close(actions, u.tanh())
    assert len(set(log_density.tolist())) == 3
    singles = [script.squash(mean[i], log_std[i], noise[:, i : i + 1])[1] for i in range(2)]
    torch.testing.assert_close(log_density, singles[0] + singles[1])


def test_saturated_actions_have_finite_densities(script):
    """tanh(u) is exactly 1 in float32 from u = 9 on: log(1 - tanh(u)^2) would be -inf."""
    mean = torch.tensor([9.5, 40.0, -40.0, -300.0])[:, None].requires_grad_(True)
    actions, log_density = script.squash(mean, torch.zeros(1), torch.tensor([[0.3]]))
    assert (actions[:3].abs() == 1).all()
    wanted = -0.5 * 0.3**2 - 0.5 * math.log(2 * math.pi) - 2 * math.log(2) + 2 * (mean + 0.3).abs()
    torch.testing.assert_close(log_density, wanted[:, 0])
    [gradient] = torch.autograd.grad(log_density.sum(), mean)
    torch.testing.assert_close(gradient, 2 * mean.sign())


def test_the_log_std_is_adjusted_then_bounded(script):
    agent, batch, _ = small_problem(script)
    raw_mean, raw = agent.actor.net(batch.obs).chunk(2, -1)
    multiplier, offset = agent.actor.log_std_multiplier, agent.actor.log_std_offset
    mean, log_std = agent.actor(batch.obs)
    torch.testing.assert_close((mean, log_std), (raw_mean, multiplier * raw + offset))
    for value, bound in (-1e3, -20.0), (1e3, 2.0):
        offset.data.fill_(value)
        assert (agent.actor(batch.obs)[1] == bound).all()


def test_acting(script):
    """The mode without a generator, else a sample from the policy that the losses train."""
    agent, batch, _ = small_problem(script, torch.float32)
    mean, log_std = agent.actor(batch.obs)
    torch.testing.assert_close(agent.act(batch.obs), mean.tanh())
    torch.testing.assert_close(agent.act(batch.obs[0]), mean[0].tanh())
    sample, again = (agent.act(batch.obs, torch.Generator().manual_seed(3)) for _ in range(2))
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample, (mean + log_std.exp() * noise).tanh())
    assert torch.equal(sample, again) and not sample.requires_grad


# --- The Lagrange factor --------------------------------------------------------------------------


@pytest.mark.parametrize("lagrange_gap, grows", [(-50.0, True), (50.0, False)])
def test_the_lagrange_factor_grows_while_the_gap_is_too_wide(script, lagrange_gap, grows):
    agent, batch, noise = small_problem(script, lagrange_gap=lagrange_gap)
    before = agent.log_lagrange.item()
    metrics = agent.update(batch, noise)
    assert (metrics["q/gap"] > lagrange_gap) == grows
    assert (agent.log_lagrange.item() > before) == grows


def test_the_lagrange_losses_by_hand(script):
    agent, batch, noise = small_problem(script, cql_weight=3.0, lagrange_gap=0.8)
    factor = agent.log_lagrange.exp().item()
    losses, metrics, q, _ = judge(agent, batch, noise)
    calibrated = script.__name__ == "cal_ql"
    gaps = gaps_by_hand(agent, batch, noise, q, batch.mc_returns if calibrated else None)
    y = target_by_hand(agent, batch, noise)
    td = ((q["data"][:, :, 0] - y) ** 2).mean(1).detach().numpy()
    penalty = factor * 3.0 * (gaps - 0.8)
    np.testing.assert_allclose(losses["critic"].detach(), td + penalty, rtol=1e-12)
    np.testing.assert_allclose(losses["lagrange"].detach(), -0.5 * penalty.sum(), rtol=1e-12)
    np.testing.assert_allclose(metrics["loss/cql"], penalty.mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["loss/td"], td.mean(), rtol=1e-12)
    np.testing.assert_allclose(metrics["q/lagrange"], factor, rtol=1e-12)
    # It is bounded, at a million.
    agent.log_lagrange.data.fill_(100.0)
    lost = agent.critic_losses(batch, noise)[0]["lagrange"].item()
    assert lost == pytest.approx(-0.5 * 1e6 * penalty.sum() / factor)


# --- Draws and initial weights --------------------------------------------------------------------


@pytest.mark.parametrize("max_target_backup, n_target", [(True, 5), (False, 1)])
def test_what_an_update_draws(script, max_target_backup, n_target):
    agent, _, _ = small_problem(script, n_actions=5, max_target_backup=max_target_backup)
    noise, again = (agent.draw(2000, torch.Generator().manual_seed(0)) for _ in range(2))
    shapes = {"actor": (1, 2), "target": (n_target, 2), "policy": (2, 5, 2), "random": (5, 2)}
    assert {name: tuple(x.shape[1:]) for name, x in noise.items()} == shapes
    assert all(len(x) == 2000 and torch.equal(x, again[name]) for name, x in noise.items())
    for name in ("actor", "target", "policy"):
        assert noise[name].mean().item() == pytest.approx(0, abs=0.1)
        assert noise[name].std().item() == pytest.approx(1, abs=0.1)
    assert noise["random"].min().item() == pytest.approx(-1, abs=0.01)
    assert noise["random"].max().item() == pytest.approx(1, abs=0.01)
    assert noise["random"].std().item() == pytest.approx(1 / math.sqrt(3), abs=0.02)
    # pi(.|s') in the penalty is drawn anew: its actions are not those of the target.
    flat = torch.cat([x.flatten() for x in noise.values()])
    assert len(flat.unique()) > 0.99 * len(flat)


def test_initial_weights(script):
    """Orthogonal with gain sqrt(2), a small last layer, no bias: every output starts near 0."""
    args = script.Args(actor_hidden=(16, 8), critic_hidden=(16, 16, 8))
    agent = script.Agent(args, 4, 2, "cpu")
    widths = [[16, 8, 4], [16, 16, 8, 1], [16, 16, 8, 1]]
    check_initial_weights(agent, widths, output_gain=0.01)
    assert agent.actor.log_std_multiplier == 1 and agent.actor.log_std_offset == -1
    assert agent.log_alpha.exp() == 1
    assert agent.log_lagrange.exp().item() == pytest.approx(math.e)
