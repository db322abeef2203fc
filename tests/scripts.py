"""What the tests share: the scripts of this repository, their text, and a small agent to try."""

import copy
import importlib.util
import inspect
import math
import os
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gymnasium as gym
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))  # a script added later is tested too
CQL_FAMILY = [name for name in ("cql", "cal_ql") if name in SCRIPTS]
AWR_FAMILY = [name for name in ("iql", "awac") if name in SCRIPTS]  # the policy copies the data
BANNER = "# ==== From here on"
CALIBRATION_KEYS = {"calibration/rate", "calibration/gap", "q/data", "q/policy", "q/random"}

# Numbers of the authors' code: those in the repository, and all in $PARITY_DIR where it is set.
OWN_FIXTURES = ROOT / "tests" / "fixtures"
FIXTURES = sorted(OWN_FIXTURES.glob("*.npz"))
if "PARITY_DIR" in os.environ:
    FIXTURES += sorted(Path(os.environ["PARITY_DIR"]).glob("*.npz"))


def text_of(name: str) -> str:
    return (ROOT / f"{name}.py").read_text()


def load_script(name: str) -> ModuleType:
    """Imports a script by its name, with or without .py, or by its path."""
    path = Path(name) if Path(name).is_file() else ROOT / f"{Path(name).stem}.py"
    return _load(path.resolve())


@cache
def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def stand_in(obs_dim=1, low=-1.0, high=1.0, action_dim=1, limit=None) -> SimpleNamespace:
    """What the reading of a dataset asks an environment for.

    low, high: the box of actions that lies within RescaleAction. limit: steps of an episode.
    """
    inner = SimpleNamespace(action_space=gym.spaces.Box(low, high, (action_dim,)))
    return SimpleNamespace(
        env=inner,
        observation_space=gym.spaces.Box(-np.inf, np.inf, (obs_dim,)),
        spec=SimpleNamespace(id="StandIn-v0", max_episode_steps=limit),
    )


def rows_of_dataset(script: ModuleType, args, data: dict, env) -> torch.Tensor:
    """A file's arrays as rows of a batch's columns, in the way of a script's load_task."""
    data = dict(data)  # some are put right in their place
    script.check_and_tidy(args, data, env)
    return script.load_rows(args, data, script.find_episodes(data), script.action_box(env))


def randn(*shape: int, seed: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def small_problem(script: ModuleType, dtype=torch.float64, batch_size=6, **settings):
    """An agent, a batch and noise, small enough to work out by hand; the same for every script.

    Weights are random, not the initial ones: the targets differ from the critics, no output is
    near 0, and of the twins now one and now the other is the lower. In float64, for comparisons
    that are sharp.
    """
    obs_dim, action_dim = 4, 2
    known = {field.name for field in fields(script.Args)}
    sizes = dict(actor_hidden=(8,), critic_hidden=(8, 8), value_hidden=(8,), n_actions=3)
    settings = {name: value for name, value in sizes.items() if name in known} | settings
    args = script.Args(batch_size=batch_size, **settings)
    agent = script.Agent(args, obs_dim, action_dim, "cpu").to(dtype)
    with torch.no_grad():
        for seed, parameter in enumerate(agent.parameters(), 2624):  # where the twins cross
            parameter.copy_(0.4 * randn(*parameter.shape, seed=seed, dtype=dtype))
    columns = dict(
        obs=randn(batch_size, obs_dim, seed=100, dtype=dtype),
        actions=randn(batch_size, action_dim, seed=101, dtype=dtype).tanh(),
        rewards=randn(batch_size, 1, seed=102, dtype=dtype),
        next_obs=randn(batch_size, obs_dim, seed=103, dtype=dtype),
        terminations=(torch.arange(batch_size) % 3 == 1).to(dtype)[:, None],
        mc_returns=randn(batch_size, 1, seed=104, dtype=dtype),
    )
    return agent, script.Batch(**columns), noise_for(agent, seed=0, dtype=dtype)


def noise_for(agent, seed: int, dtype=torch.float64) -> dict[str, torch.Tensor]:
    noise = agent.draw(agent.args.batch_size, torch.Generator().manual_seed(seed))
    return {name: value.to(dtype) for name, value in noise.items()}


# --- What the tests of losses have in common ------------------------------------------------------


def grads_of(loss, parameters):
    return torch.autograd.grad(loss, list(parameters), allow_unused=True, retain_graph=True)


def answer(net, values: torch.Tensor) -> None:
    """From now on a network gives these values, whatever it is asked."""
    net.forward = lambda *inputs: values


def at_the_edge(batch):
    """With some actions on the faces of the box, as online samples are that were cut off there."""
    actions = batch.actions.clone()
    actions[:2] = torch.tensor([[1.0, -1.0], [-1.0, 0.2]])
    return batch._replace(actions=actions)


def log_density_by_hand(mean, log_std, actions) -> list[float]:
    """log pi(a|s) of a Gaussian, number by number: (B, act), (act), (B, act) -> B numbers."""
    found = []
    for means, row in zip(mean.tolist(), actions.tolist()):
        total = 0.0
        for m, s, a in zip(means, log_std.tolist(), row):
            total += -0.5 * ((a - m) / math.exp(s)) ** 2 - s - 0.5 * math.log(2 * math.pi)
        found.append(total)
    return found


def loss_of(agent, name, batch, noise) -> tuple[torch.Tensor, dict]:
    """A loss of awac.py or iql.py, which ask for different things, and its metrics."""
    function = getattr(agent, f"{name}_loss")
    asked = inspect.signature(function).parameters
    given = {"batch": batch, "noise": noise}
    if "slow_q" in asked:
        given["slow_q"] = agent.min_slow_q(batch)
    return function(**{key: given[key] for key in asked})


def weights_of(agent, batch, noise) -> torch.Tensor:
    """What actor_loss multiplies each -log pi(a|s) by, (B,), told by its gradient to the mean."""
    calls = []
    hook = agent.actor.register_forward_hook(lambda _, inputs, output: calls.append(output))
    loss, _ = loss_of(agent, "actor", batch, noise)
    hook.remove()
    [(mean, log_std)] = calls
    [gradient] = torch.autograd.grad(loss, mean)
    weights = -gradient * (2 * log_std).exp() / (batch.actions - mean)  # d log pi / d mean
    torch.testing.assert_close(weights[:, 1:], weights[:, :-1])
    return weights[:, 0].detach()


def check_critic_loss(agent, batch, found, y) -> None:
    """The sum of the two critics' E (Q_i(s, a) - y)^2, of which the log has the mean."""
    inputs = torch.cat([batch.obs, batch.actions], -1)
    q = [net(inputs)[:, 0].tolist() for net in agent.critic.nets]
    errors = [sum((x - wanted) ** 2 for x, wanted in zip(row, y)) / len(y) for row in q]
    loss, metrics = found
    assert math.isclose(loss.item(), errors[0] + errors[1], rel_tol=1e-12)
    assert metrics.keys() == {"loss/td"}
    assert math.isclose(metrics["loss/td"].item(), sum(errors) / 2, rel_tol=1e-12)


def check_losses_train_their_own(losses: dict, parameters: dict) -> None:
    """A loss has a gradient for the parameters of its own name, and for no others."""
    for name, loss in losses.items():
        for other, tensors in parameters.items():
            found = [x is not None and (x != 0).any().item() for x in grads_of(loss, tensors)]
            assert all(found) if name == other else not any(found), (name, other)


def follow_by_hand(agent) -> None:
    pairs = zip(agent.critic_target.parameters(), agent.critic.parameters())
    with torch.no_grad():
        for slow, fast in pairs:
            slow.copy_((1 - agent.args.tau) * slow + agent.args.tau * fast)


def check_same_weights(agent, hand) -> None:
    for (name, found), wanted in zip(agent.named_parameters(), hand.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11, msg=name)


def check_updates_take_turns(agent, batch, turns) -> None:
    """Several updates against a copy on which `turns` says what is done: pairs of an optimiser of
    torch's own and a loss, each taken when the one before has made its step."""
    hand = copy.deepcopy(agent)
    turns = turns(hand)
    for k in range(3):
        noise = noise_for(agent, k)
        found = agent.update(batch, noise)
        metrics = sys.modules[type(agent).__module__].calibration(hand, batch, noise)
        for optimizer, loss_of in turns:
            loss, more = loss_of(batch, noise)
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            for parameter, gradient in zip(parameters, grads_of(loss, parameters)):
                parameter.grad = gradient
            optimizer.step()
            metrics |= more
        follow_by_hand(hand)
        check_same_weights(agent, hand)
        slow = agent.critic_target.parameters()
        assert not any(x.requires_grad for x in (*found.values(), *slow)), "no graph is left"
        torch.testing.assert_close(found, {key: value.detach() for key, value in metrics.items()})


def check_initial_weights(agent, widths: list[list[int]], output_gain: float) -> None:
    """Orthogonal with gain sqrt(2) and no bias; widths of actor, critics and, if any, value."""
    nets = [agent.actor.net, *agent.critic.nets, *([agent.value] if len(widths) > 3 else [])]
    assert [[layer.out_features for layer in net[::2]] for net in nets] == widths
    for net in nets:
        layers = net[::2]
        assert [type(layer) for layer in net[1::2]] == [torch.nn.ReLU] * (len(layers) - 1)
        for layer in layers:
            gain = output_gain if layer is layers[-1] else math.sqrt(2)
            torch.testing.assert_close(
                torch.linalg.svdvals(layer.weight), torch.full((min(layer.weight.shape),), gain)
            )
            assert (layer.bias == 0).all()
    first, second = (net[0].weight for net in agent.critic.nets)
    assert not torch.equal(first, second), "twins that start equal stay equal"
    for fast, slow in zip(agent.critic.parameters(), agent.critic_target.parameters(), strict=True):
        assert torch.equal(fast, slow) and not slow.requires_grad
