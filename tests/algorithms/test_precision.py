"""--bf16: how far its numbers may be from those without. And --threads, which moves none by more
than its roundings."""

import copy

import pytest
import torch
from scripts import SCRIPTS, grads_of, load_script, loss_of, small_problem

WIDE = dict(critic_hidden=(256, 256), batch_size=64)
# The stated bound: relative errors of the norms of what the critics' and the policy's parameters
# get as gradient. Another batch of the same data differs by far more.
CRITICS_BOUND, POLICY_BOUND = 0.1, 0.02


@pytest.fixture(params=SCRIPTS)
def script(request):
    return load_script(request.param)


def pair(script):
    """The same agent without --bf16 and with it."""
    agent, batch, noise = small_problem(script, torch.float32, **WIDE)
    for net in agent.critic.nets:
        for layer in net[::2]:
            torch.nn.init.orthogonal_(layer.weight, 2**0.5)
    agent.critic_target.load_state_dict(agent.critic.state_dict())
    rounded = copy.deepcopy(agent)
    rounded.args = script.Args(**vars(agent.args) | {"bf16": True})
    rounded.critic.bf16 = rounded.critic_target.bf16 = True
    return agent, rounded, batch, noise


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def gradients(agent, batch, noise) -> dict[str, torch.Tensor]:
    """Of all losses together: what critics and policy get, as one vector each."""
    if hasattr(agent, "critic_losses"):
        losses = agent.critic_losses(batch, noise)[0] | agent.actor_losses(batch, noise)[0]
        loss = sum(x.sum() for x in losses.values())
    else:
        loss = sum(loss_of(agent, name, batch, noise)[0] for name in ("critic", "actor"))
    found = {}
    for name in ("critic", "actor"):
        parts = grads_of(loss, getattr(agent, name).parameters())
        found[name] = torch.cat([x.flatten() for x in parts])
    return found


def test_the_setting_reaches_both_pairs_of_critics(script):
    for bf16 in (False, True):
        agent = script.Agent(script.Args(bf16=bf16), 4, 2, "cpu")
        assert agent.critic.bf16 == agent.critic_target.bf16 == bf16


@pytest.mark.parametrize("hidden", [(255,), (512, 64), ()])
def test_narrow_critics_are_refused(script, hidden):
    """They are slower with it."""
    script.Args(critic_hidden=hidden)
    script.Args(critic_hidden=(256, 512), bf16=True)
    with pytest.raises(ValueError, match="^--bf16: slows down critics with layers narrower"):
        script.Args(critic_hidden=hidden, bf16=True)


def test_gradients_are_within_the_bound(script):
    agent, rounded, batch, noise = pair(script)
    wanted, found = gradients(agent, batch, noise), gradients(rounded, batch, noise)
    assert 1e-4 < error(found["critic"], wanted["critic"]) < CRITICS_BOUND
    assert error(found["actor"], wanted["actor"]) < POLICY_BOUND
    halves = [batch._replace(**{k: v[i::2] for k, v in batch._asdict().items()}) for i in (0, 1)]
    noises = [{k: v[i::2] for k, v in noise.items()} for i in (0, 1)]
    other, one = (gradients(agent, *each) for each in zip(halves, noises))
    assert error(other["critic"], one["critic"]) > 5 * error(found["critic"], wanted["critic"])


def test_the_last_layer_is_not_rounded(script):
    """Near 1,000 bfloat16 has steps of 4; Q does not."""
    agent, rounded, batch, _ = pair(script)
    for each in agent, rounded:
        for net in each.critic.nets:
            torch.nn.init.constant_(net[-1].bias, 1000.0)
    q = rounded.critic(batch.obs, batch.actions[:, None])
    assert q.dtype == torch.float32
    assert len(q.unique()) > 100
    wanted = agent.critic(batch.obs, batch.actions[:, None])
    spread = (wanted - 1000).abs().max()
    assert 0 < (q - wanted).abs().max() < 0.02 * spread


def test_weights_and_moments_stay_in_float32(script):
    _, agent, batch, noise = pair(script)
    agent.update(batch, noise)
    states = [x for optimizer in agent.optimizers.values() for x in optimizer.state.values()]
    tensors = [*agent.state_dict().values(), *(x for state in states for x in state.values())]
    assert {x.dtype for x in tensors} == {torch.float32}
    assert all(x.isfinite().all() for x in tensors)


def test_a_policy_is_as_it_was(script):
    """The option is about the critics: what the policy does at a state is the same, bit for bit."""
    agent, rounded, batch, _ = pair(script)
    assert torch.equal(agent.act(batch.obs), rounded.act(batch.obs))


@pytest.mark.parametrize("has_units", [False, True])
def test_a_processor_without_units_is_told(script, monkeypatch, capsys, has_units):
    on = {"avx2": True, "avx512_bf16": False, "amx_bf16": has_units, "cpu_name": "some"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: on)
    assert script.choose_device(script.Args(bf16=True, device="cpu")) == "cpu"
    reason = "has no units for bfloat16; a run is slower with it"
    wanted = f"{script.__name__}.py: warning: --bf16: this processor {reason}\n"
    assert capsys.readouterr().err == ("" if has_units else wanted)
    script.choose_device(script.Args(device="cpu"))
    assert capsys.readouterr().err == "", "without the option there is nothing to say"


def test_two_threads_compute_the_same(script):
    """But for roundings: wide enough for torch to share the work out."""
    agent, _, batch, noise = pair(script)
    wanted = gradients(agent, batch, noise)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = gradients(agent, batch, noise)
    finally:
        torch.set_num_threads(before)
    for name in wanted:
        assert error(found[name], wanted[name]) < 1e-5
