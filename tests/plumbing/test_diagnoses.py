"""What a run says about its dataset: the facts, and the mistakes that would make it learn nothing.

A diagnosis that speaks about a good file is worse than none, so each has good files next to the bad
ones, and a bad file is told of in one line only. The scripts share all of this; one is tested.
"""

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import toy
from conftest import quick
from scripts import load_script
from toy import Trouble

SCRIPT = "cql"
module = load_script(SCRIPT)
BOX = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

# What is given for a step that ends at a position; the goal lies beyond 1.
REWARDS = {
    "success - 1": lambda position: (position >= 1) - 1.0,
    "success": lambda position: (position >= 1) * 1.0,
    "dense": lambda position: -np.abs(1 - position),
}


def with_reward(data: dict, kind: str) -> dict:
    return data | {"rewards": REWARDS[kind](data["next_observations"][:, 0]).astype(np.float32)}


def with_observations(data: dict, change) -> dict:
    """Observations and next_observations, (N, 2) of position and push, through a function."""
    keys = [key for key in data if key.endswith("observations")]
    return data | {key: change(data[key]).astype(np.float32) for key in keys}


def in_order(data: dict, rows: np.ndarray) -> dict:
    return {key: array[rows] for key, array in data.items()}


@pytest.fixture
def data(toy_data) -> dict[str, np.ndarray]:
    """As the diagnoses get it: flags are bool."""
    flags = {key: toy_data[key] != 0 for key in ("terminals", "timeouts")}
    return {key: array.copy() for key, array in (toy_data | flags).items()}


@pytest.fixture(scope="module")
def dict_env() -> gym.Env:
    return module.make_env(module.Args(env_id="toy:DictToy-v0"), {})


@pytest.fixture(scope="module")
def first_evaluation(dict_env) -> list:
    agent = module.Agent(module.Args(actor_hidden=(8,), critic_hidden=(8,)), 2, 1, "cpu")
    stop = module.StopSignal()
    return [module.play_episode(agent, dict_env, seed, stop) for seed in range(20)]


def played_for(episodes: list, kind: str) -> list:
    return [each._replace(rewards=REWARDS[kind](each.next_obs[:, 0])) for each in episodes]


@pytest.fixture
def told(capsys, dict_env, first_evaluation):
    """Asks all diagnoses about a file: their lines, and whether one ended the program."""

    def ask(data, played=first_evaluation, box=BOX, **settings) -> tuple[list[str], bool]:
        episodes, refused = module.find_episodes(data), False
        task = SimpleNamespace(env=dict_env, summary=module.summarize_data(data, episodes))
        try:
            module.diagnose_dataset(module.Args(**settings), data, episodes, box)
            module.compare_with_data(task, played)
        except SystemExit as error:
            assert error.code == 2
            refused = True
        return capsys.readouterr().err.splitlines(), refused

    return ask


SILENT = ([], False)


def check_the_line(answer, *parts, refused=False) -> None:
    """One line, which has all the parts."""
    lines, ended = answer
    assert len(lines) == 1 and ended == refused, lines
    for part in parts:
        assert part in lines[0]


# --- Good files -----------------------------------------------------------------------------------


def without_next(data):
    return {key: array for key, array in data.items() if key != "next_observations"}


def other_starts(data):
    return with_observations(data, lambda obs: obs - [3, 0])


def tiny_column(data):
    return with_observations(data, lambda obs: obs * [1, 1e-5])


def half_digits(data):
    return data | {"next_observations": data["next_observations"].astype(np.float16)}


def some_clipped(data):
    data["actions"][:10] = 1.5
    return data


GOOD = [dict, without_next, other_starts, tiny_column, half_digits, some_clipped]


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("change", GOOD)
def test_good_files(change, kind, data, told, first_evaluation):
    data = change(with_reward(data, kind))
    assert told(data, played_for(first_evaluation, kind)) == SILENT


def runs_of_terminals(data):
    """As AntMaze's: some steps at the goal, each of them marked, in an episode that goes on."""
    data = without_next(data)
    for start in range(3, len(data["rewards"]) - 10, 31):
        data["rewards"][start : start + 5] = 0
        data["terminals"][start : start + 5] = True
    return data


def test_runs_of_terminals(data, told):
    data = runs_of_terminals(data)
    assert sum(span.stop - span.start == 1 for span in module.find_episodes(data)) > 20
    assert told(data) == SILENT


@pytest.mark.parametrize("kind", REWARDS)
def test_an_experts_data(kind, data, told, first_evaluation):
    """All its episodes succeed, far better than what the untrained policy sees."""
    successes = [span for span in module.find_episodes(data) if data["terminals"][span.stop - 1]]
    data = in_order(data, np.concatenate([np.r_[span] for span in successes]))
    assert len(successes) > 10 and not data["timeouts"].any()
    assert told(with_reward(data, kind), played_for(first_evaluation, kind)) == SILENT


# --- Rewards --------------------------------------------------------------------------------------


def no_rewards(episodes):
    return [each._replace(rewards=0 * each.rewards) for each in episodes]


def test_equal_rewards(data, told, first_evaluation):
    data["rewards"][:] = 0
    answer = told(data, no_rewards(first_evaluation))
    check_the_line(answer, "all rewards that are used are 0", "write the task's rewards into")


def test_some_rewards_in_steps_of_timeouts_alone(data, told, first_evaluation):
    """Half of the goals reached were marked as timeouts."""
    data = with_reward(data, "success")
    goals = np.flatnonzero(data["terminals"])
    data["terminals"][goals[::2]], data["timeouts"][goals[::2]] = False, True
    answer = told(data, played_for(first_evaluation, "success"))
    lost = f"{len(goals[::2])} of {len(goals)} rows with the highest reward are left out"
    check_the_line(answer, lost, "mark goals as terminals")


def test_rewards_in_steps_of_timeouts_alone(data, told, first_evaluation):
    """Reaching the goal was marked as a timeout, whose step is left out."""
    data = with_reward(data, "success")
    data["timeouts"] |= data["terminals"]
    data["terminals"][:] = False
    answer = told(data, played_for(first_evaluation, "success"))
    check_the_line(answer, "are in rows that are left out", "mark goals as terminals")


@pytest.mark.parametrize("value, bias", [(1, 0), (0, -1)])
def test_a_reward_for_every_step(value, bias, data, told, first_evaluation):
    """All are equal, but a longer episode has another return; not if the scaled ones are 0."""
    data["rewards"][:] = value
    played = [each._replace(rewards=0 * each.rewards + value) for each in first_evaluation]
    assert told(data, played, reward_bias=bias) == SILENT
    check_the_line(told(data, played, reward_bias=-value), "nothing to learn")


@pytest.mark.parametrize("of_environment", REWARDS)
@pytest.mark.parametrize("of_file", REWARDS)
def test_rewards_of_two_kinds(of_file, of_environment, data, told, first_evaluation):
    answer = told(with_reward(data, of_file), played_for(first_evaluation, of_environment))
    if of_file == of_environment:
        assert answer == SILENT
    else:
        check_the_line(answer, "do not match", "convert the file's", "--env-id")


def test_rewards_of_two_kinds_next_to_runs_of_terminals(data, told, first_evaluation):
    """Episodes of a single step begin with the highest reward, but say nothing about beginnings."""
    answer = told(runs_of_terminals(data), played_for(first_evaluation, "success"))
    check_the_line(answer, "rewards are -1, 0, but those of the environment 0")


def test_a_single_episode_may_begin_at_the_goal(data, told, first_evaluation):
    """0 in each of its steps is then no sign of other rewards."""
    assert told(data, no_rewards(first_evaluation[:1])) == SILENT
    check_the_line(told(data, no_rewards(first_evaluation)), "do not match")


def test_a_reward_for_staying_alive(data, told, first_evaluation):
    """An expert's file has 1 and 2; the untrained policy falls at once, which gives 0."""
    data["rewards"] = 1 + np.float32(data["actions"][:, 0] > 0.5)
    played = [each._replace(rewards=np.array([1.0] * 9 + [0.0])) for each in first_evaluation]
    assert told(data, played) == SILENT


@pytest.mark.parametrize("n_values, n, few", [(2, 20, True), (2, 19, False), (11, 999, False)])
def test_rewards_are_few_if_each_comes_again_and_again(n_values, n, few):
    values = module.few_rewards(np.arange(n) % n_values)
    assert values is None if not few else values.tolist() == [0, 1]


def test_zero_has_no_sign():
    """FetchReach gives -0.0 for success."""
    assert module.spell(np.tile(np.float32([-0.0, -1]), 10)) == "-1, 0"


# --- Order of the rows ----------------------------------------------------------------------------


def shuffled(n):
    return np.random.default_rng(0).permutation(n)


def interleaved(n, k=2):
    return np.arange(n // k * k).reshape(k, -1).T.ravel()


@pytest.mark.parametrize("order", [shuffled, interleaved, lambda n: interleaved(n, 4)])
def test_rows_out_of_order(order, data, told):
    data = in_order(data, order(len(data["rewards"])))
    check_the_line(told(data), "not in order of time", "whole episodes", refused=True)
    assert told(without_next(data)) == SILENT, "which cannot be seen without next_observations"


def test_unmarked_ends(data, told):
    data["timeouts"][np.flatnonzero(data["timeouts"])[::2]] = False
    check_the_line(told(data), "so some returns are wrong", "mark the ends of all episodes")


@pytest.mark.parametrize("n_jumps, n_lines", [(0, 0), (2, 0), (3, 1)])
def test_a_few_jumps_among_many_rows(n_jumps, n_lines, capsys):
    """Where two files were joined in the middle of an episode."""
    n = 25_000
    obs = np.arange(n + 1.0)[:, None]
    data = {"observations": obs[:-1], "next_observations": obs[1:].copy()}
    data["next_observations"][5_000 : 5_000 + n_jumps] = -1e4
    module.check_row_order(module.Args(), data, [slice(0, 12_000), slice(12_001, n)])
    assert len(capsys.readouterr().err.splitlines()) == n_lines


# --- Actions --------------------------------------------------------------------------------------


def test_actions_of_another_box(data, told):
    data["actions"] *= 30
    parts = "lie outside the environment's action box (-1 to 1", "--env-id"
    check_the_line(told(data), *parts, refused=True)
    assert told(data, box=gym.spaces.Box(-30.0, 30.0, (1,), np.float32)) == SILENT


def test_many_clipped_actions(data, told):
    data["actions"] *= 1.4
    check_the_line(told(data), "lie outside", "They are clipped", "--env-id")


def test_rounding_is_not_outside():
    actions = np.float32([[-1.0001], [1.0001], [1.001], [0]])
    assert module.share_outside(actions, BOX) == 1 / 4


# --- Observations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [12_000, 1e-4])
def test_observations_of_another_scale(factor, data, told, first_evaluation):
    data = with_observations(data, lambda obs: obs * factor)
    played = [each._replace(obs=each.obs * factor) for each in first_evaluation]
    check_the_line(told(data, played), "observations are about", "add --normalize-observations")
    assert told(data, played, normalize_observations=True) == SILENT


def test_observations_in_another_unit(data, told, first_evaluation):
    played = [each._replace(obs=each.obs * 1000 + 1000) for each in first_evaluation]
    parts = "far from the dataset's", "order and unit", "position (1), push (1)"
    check_the_line(told(data, played), "column 0 is ", *parts)


def test_entries_in_another_order(data, told):
    data = with_observations(data, lambda obs: obs[:, ::-1])
    parts = "in the order push, position;", "gymnasium's order, position (1), push (1)"
    check_the_line(told(data), "do not fit the dataset's", *parts)


ENTRIES = {"goal": 1, "place": 2, "push": 1}  # a goal from 2 to 3, a place from -1 to 1, push 0


def starts(n: int, order: list[str], seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed).uniform
    entries = {"goal": draw(2, 3, (n, 1)), "place": draw(-1, 1, (n, 2)), "push": np.zeros((n, 1))}
    return np.concatenate([entries[key] for key in order], axis=1)


def summary_of_starts(obs: np.ndarray):
    low, high = obs.min(axis=0), obs.max(axis=0)
    return module.DataSummary(None, np.zeros(len(obs)), low, high, low, high)


@pytest.mark.parametrize(
    "order", [["place", "push", "goal"], ["push", "place", "goal"], [*ENTRIES]]
)
@pytest.mark.parametrize("n_played", [2, 20])
def test_the_order_of_three_entries(order, n_played):
    data, played = summary_of_starts(starts(50, order, 0)), starts(n_played, [*ENTRIES], 1)
    assert module.better_order(data, played, ENTRIES) == (order if order != [*ENTRIES] else [])


def test_the_order_of_entries_most_of_which_are_zeros():
    """As contact forces are, in an ant's observation of 105 numbers."""
    entries, zeros = ENTRIES | {"forces": 70}, np.zeros((20, 70))
    played = np.hstack([starts(20, [*ENTRIES], 1), zeros])
    data = summary_of_starts(np.hstack([starts(20, ["place", "goal", "push"], 0), zeros]))
    assert module.better_order(data, played, entries) == ["place", "goal", "push", "forces"]


@pytest.mark.parametrize("n", [19, 20])
def test_few_episodes_do_not_tell_where_episodes_begin(n):
    data = summary_of_starts(starts(n, ["push", "place", "goal"], 0))
    found = module.better_order(data, starts(20, [*ENTRIES], 1), ENTRIES)
    assert found == (["push", "place", "goal"] if n == 20 else [])


def test_no_order_fits():
    """All starts are elsewhere, which says nothing about an order."""
    data, played = summary_of_starts(starts(50, [*ENTRIES], 0)), starts(20, [*ENTRIES], 1)
    assert module.better_order(data, played + 1.5, ENTRIES) == []


def test_starts_a_little_outside():
    """A quarter of the range is left as room, and zeros are not counted."""
    data = summary_of_starts(np.array([[-1, 3], [1, 5]]))
    played = np.array([[1.4, 2.6], [1.6, 5.6], [1, 0]])
    assert module.share_outside_starts(data, played) == 2 / 5


@pytest.mark.parametrize("goals, far", [([0, 3], []), ([-25, -25], [1]), ([-25, 0], [])])
def test_a_goal_that_is_constant_in_the_file(goals, far):
    """Its own spread is 0; that of the other column, 2, tells what is far, if all goals are."""
    data = summary_of_starts(np.array([[-1, 0], [1, 0]]))
    played = np.stack([[0, 5], goals], axis=1)
    assert module.far_columns(data, played).tolist() == far


# --- Critics --------------------------------------------------------------------------------------


def test_exploding_q_is_told_once(capsys):
    evaluations = []
    for step, q, bound in [(0, 9, 5), (10, 9, 0), (20, -4, 5), (30, -6, 5), (40, 7, 5)]:
        evaluations.append((step, {"q_s0": q, "q_bound": bound}))
        module.warn_of_exploding_q(evaluations)
        assert len(capsys.readouterr().err.splitlines()) == (step == 30)


# --- Description ----------------------------------------------------------------------------------


def test_description(capsys):
    """By hand, three times: two steps and a goal; two steps and a timeout's; a step at the goal.
    After that two steps of an episode that does not end."""
    rows = np.arange(23)
    part = np.where(rows < 21, rows % 7, -1)
    data = {
        "actions": np.full((23, 1), 0.5, np.float32),
        "rewards": np.isin(part, [2, 5, 6]).astype(np.float32),
        "terminals": np.isin(part, [2, 6]),
        "timeouts": part == 5,
    }
    data["actions"][0] = 3
    box = gym.spaces.Box(0.0, 2.0, (1,), np.float32)
    about = module.describe_dataset(data, module.find_episodes(data), box)
    assert json.loads(json.dumps(about)) == about
    assert about == {
        "rows": 23,
        "rows_used": 18,
        "rows_of_an_open_episode": 2,
        "episodes": 9,
        "episodes_of_one_step": 3,
        "ended_by_terminal": 6,
        "ended_by_timeout": 3,
        "longest_episode": 3,
        "mean_action_size": pytest.approx((2 + 22 * 0.5) / 23),
        "actions_clipped": pytest.approx(1 / 23),
        "return_least": 0,
        "return_mean": pytest.approx(2 / 3),
        "return_most": 1,
    }  # of 18 rewards two cannot be told to recur
    module.print_description(about)
    assert capsys.readouterr().out.splitlines() == [
        "data: 18 of 23 rows are used, in 9 episodes (3 of a single step): 6 end in a terminal, 3"
        " at a time limit; after the last end 2 rows are left out",
        "data: returns from 0 to 1, mean 0.6667",
        "data: rescaled to [-1, 1], actions have a mean size of 0.57; 4.35% of their numbers are"
        " outside and clipped",
    ]


@pytest.mark.parametrize("kind, has_values", [("dense", False), ("success", True)])
def test_description_lists_rewards_that_are_few(kind, has_values, data, capsys):
    data, episodes = with_reward(data, kind), module.find_episodes(data)
    about = module.describe_dataset(data, episodes, BOX)
    module.print_description(about)
    assert ("rewards" in about) == has_values
    if has_values:  # those of the rows that are used
        assert sum(about["rewards"].values()) == about["rows_used"]
        best = sum(data["rewards"][span].max() == 1 for span in episodes)
        assert about["episodes_with_the_highest"] == best == about["rewards"]["1"]
    assert ("have the highest" in capsys.readouterr().out) == has_values
    assert about["rows_of_an_open_episode"] == 0


def test_none_reaches_the_highest_of_equal_rewards(data):
    data["rewards"][:] = 0
    about = module.describe_dataset(data, module.find_episodes(data), BOX)
    assert about["rewards"] == {"0": about["rows_used"]}
    assert "episodes_with_the_highest" not in about


# --- Whole runs -----------------------------------------------------------------------------------


@pytest.fixture
def run(run_here, tmp_path, capsys):
    """A quick run on these arrays: what it writes to stdout and stderr."""

    def on(data, **settings):
        path = toy.save(tmp_path / "data.hdf5", data)
        run_here(SCRIPT, *quick(SCRIPT, dataset=path, run_dir="run", **settings))
        return capsys.readouterr()

    return on


def test_a_run_tells_what_it_was_given(data, run, tmp_path):
    said = run(data)
    assert said.out.count("data: ") == 3
    assert "warning" not in said.err
    about = json.loads((tmp_path / "run" / "args.json").read_text())["dataset"]
    assert about["rows"] == len(data["rewards"])


def test_a_run_on_dense_rewards_warns(data, run):
    """The task gives success - 1."""
    said = run(with_reward(data, "dense"))
    assert "warning: the dataset's rewards are many values" in said.err
    assert said.err.count("warning") == 1


def test_a_run_refuses_interleaved_rows(data, run_here, tmp_path, capsys):
    path = toy.save(tmp_path / "data.hdf5", in_order(data, interleaved(len(data["rewards"]))))
    with pytest.raises(SystemExit) as end:
        run_here(SCRIPT, *quick(SCRIPT, dataset=path, run_dir="run"))
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{SCRIPT}.py: --dataset {path}: the rows are not in order")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_run_on_large_observations(normalize, data, run, monkeypatch):
    enlarge = staticmethod(lambda env, result: (result[0] * 12_000, *result[1:]))
    monkeypatch.setattr(Trouble, "meddle", enlarge)
    data = with_observations(data, lambda obs: obs * 12_000)
    said = run(data, env_id="toy:Trouble-v0", normalize_observations=normalize)
    assert ("add --normalize-observations" in said.err) == (not normalize)
    assert said.err.count("far from") == said.err.count("do not fit") == 0


def test_a_run_with_entries_in_another_order_warns(data, run):
    swapped = with_observations(data, lambda obs: obs[:, ::-1])
    said = run(swapped, env_id="toy:DictToy-v0")
    assert "gymnasium's order, position (1), push (1)" in said.err
    assert said.err.count("warning") == 1
