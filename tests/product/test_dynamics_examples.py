"""The examples of dynamics and of control: their data and environments by loops, and small runs of each."""

from functools import partial
from typing import Any

import decision
import flip_flop
import grid
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrent_ppo as ppo

pytestmark = pytest.mark.usefixtures("as_it_comes")


def test_bits_are_those_of_the_last_pulses():
    sequences = flip_flop.draw(np.random.default_rng(0), 4)
    for xs, targets in zip(sequences.xs, sequences.targets, strict=True):
        bits = np.zeros(3)
        for x, target in zip(xs, targets, strict=True):
            bits = np.where(x == 0, bits, x)
            np.testing.assert_array_equal(target, bits)
    assert 0.05 < np.mean(sequences.xs[:, 1:] != 0) < 0.15


def test_a_decision_is_about_the_relevant_mean():
    trials, means = decision.draw(np.random.default_rng(0), 2000)
    relevant = trials.xs[:, 0, 2:].argmax(1)
    np.testing.assert_array_equal(trials.xs[..., 2:].sum(-1), 1)
    np.testing.assert_allclose(trials.xs[..., :2].mean(1), means, atol=0.4)
    right = np.sign(means[np.arange(2000), relevant])
    assert 0.8 < np.mean(np.sign(trials.targets[:, -1, 0]) == right) < 0.9  # 0.85 of a perfect integral
    assert np.abs(np.mean(trials.targets[:, -1, 0] * np.sign(means[np.arange(2000), 1 - relevant]))) < 0.1


def test_the_pole_falls_as_its_equations_say():
    """Barto, Sutton & Anderson 1983, equations of the appendix without friction, step by step."""
    environment = ppo.cart_pole(0)
    x, v, angle, turning = start = 0.01, -0.3, 0.05, 0.4
    state, steps = ppo.Pole(jnp.asarray(start), jnp.zeros((), int)), jax.jit(environment.step)
    for action in (1, 0, 0, 1, 1):
        force = 10.0 if action else -10.0
        torque = (-force - 0.1 * 0.5 * turning**2 * np.sin(angle)) / 1.1
        bent = (9.8 * np.sin(angle) + np.cos(angle) * torque) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
        moved = (force + 0.1 * 0.5 * (turning**2 * np.sin(angle) - bent * np.cos(angle))) / 1.1
        x, v, angle, turning = x + 0.02 * v, v + 0.02 * moved, angle + 0.02 * turning, turning + 0.02 * bent
        state, reward, end = steps(state, jnp.asarray(action))
        np.testing.assert_allclose(state.physics, (x, v, angle, turning), rtol=1e-4, atol=1e-6)
        assert (float(reward), bool(end)) == (1.0, False)
    np.testing.assert_allclose(environment.observe(state), (x / 2.4, angle / np.deg2rad(12)), rtol=1e-4)
    for physics, time in (((2.5, 0, 0, 0), 0), ((0, 0, 0.3, 0), 0), ((0, 0, 0, 0), 499)):
        assert steps(ppo.Pole(jnp.asarray(physics, float), jnp.asarray(time)), jnp.asarray(1))[2]


def test_a_chain_shows_its_sign_once_and_pays_at_the_end():
    environment = ppo.memory_chain(3)
    step, state = jax.jit(environment.step), ppo.Chain(jnp.asarray(1), jnp.asarray(0))
    seen = []
    for _ in range(4):
        seen.append(np.asarray(environment.observe(state)))
        before, (state, reward, end) = state, step(state, jnp.asarray(1))
    np.testing.assert_allclose(seen, [[1, 0, 0], [0, 1 / 3, 0], [0, 2 / 3, 0], [0, 1, 1]], rtol=1e-6)
    assert (float(reward), bool(end)) == (1.0, True)
    assert float(step(before, jnp.asarray(0))[1]) == -1.0


def test_advantages_are_sums_of_differences():
    random, scale = np.random.default_rng(1), 0.5
    rewards, values, last = random.normal(size=(2, 5)), random.normal(size=(2, 5)), random.normal(size=2)
    ends = np.asarray([[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]])
    rollout = ppo.Rollout(None, None, None, None, *map(grid.place, (values, rewards, ends.astype(bool))))
    expected = np.zeros((2, 5))
    for agent in range(2):
        for begin in range(5):
            factor = 1.0
            for t in range(begin, 5):
                following = last[agent] if t == 4 else values[agent, t + 1]
                goes_on = ppo.DISCOUNT * (1 - ends[agent, t])
                expected[agent, begin] += factor * (scale * rewards[agent, t] + goes_on * following - values[agent, t])
                factor *= goes_on * ppo.LAMBDA
    got = jax.jit(partial(ppo.advantages, scale=scale))(rollout, grid.place(last))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_learning_replays_what_was_acted_across_the_border_of_rollouts(monkeypatch):
    """Episodes have 5 steps and rollouts 8: the second rollout begins within an episode."""
    for name, value in {"UNITS": 8, "AGENTS": 3, "T": 8}.items():
        monkeypatch.setattr(ppo, name, value)
    environment, (drawn, placed, *acting) = ppo.memory_chain(4), jax.random.split(jax.random.key(0), 4)
    agent: Any = ppo.Agent("gru", environment.inputs, environment.actions, key=drawn)
    place = ppo.begin(environment, agent, 3, placed)
    collect, replay = jax.jit(partial(ppo.collect, environment)), jax.jit(ppo.replay)
    for key, starts in zip(acting, ([0, 5], [2, 7]), strict=True):
        place, (memory, rollout, _) = collect(agent, place, key)
        np.testing.assert_array_equal(rollout.begins, [[t in starts for t in range(8)]] * 3)
        log_policy, values = replay(agent, memory, rollout)
        chosen = np.take_along_axis(np.asarray(log_policy), np.asarray(rollout.actions)[..., None], 2)[..., 0]
        np.testing.assert_allclose(chosen, rollout.log_probabilities, rtol=0, atol=1e-6)
        np.testing.assert_allclose(values, rollout.values, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("updates", "reports"), [(1, 1), (25, 13)])
def test_no_update_is_left_out(monkeypatch, capsys, updates, reports):
    for name, value in {"UNITS": 4, "AGENTS": 4, "T": 4, "EPOCHS": 1, "EPISODES": 2}.items():
        monkeypatch.setattr(ppo, name, value)
    ppo.train(ppo.memory_chain(2), "memoryless", updates, range(1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == reports
    assert lines[-1].endswith(f"to step {updates * 4 * 4:,}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "memory", "--length", "0"], "--length: expected at least 1, got 0"),
        (["--updates", "0"], "--updates: expected at least 1, got 0"),
        (["--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["--length", "30"], "--length: expected none with --task cartpole, got 30. Pass --task memory"),
    ],
)
def test_agents_refuse_options_that_do_not_fit(capsys, words, message):
    with pytest.raises(SystemExit):
        ppo.parse(words)
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_a_flip_flop_is_trained_looked_at_and_drawn(monkeypatch, tmp_path, capsys):
    for name, value in {"UNITS": 8, "TRAJECTORIES": 2, "STARTS": 16, "B": 4}.items():
        monkeypatch.setattr(flip_flop, name, value)
    words = ["--steps", "3", "--cell", "rate", "--picture", str(tmp_path / "points.png")]
    (record,) = flip_flop.run(flip_flop.parse(words))
    assert record["eigenvalue_difference"] < 1e-6  # not NaN: there are points
    assert "memories are held by exactly one stable point" in capsys.readouterr().out
    assert (tmp_path / "points.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_decision_is_trained_looked_at_and_drawn(monkeypatch, tmp_path, capsys):
    for name, value in {"UNITS": 10, "TESTED": 32, "STARTS": 16, "B": 4, "T": 8}.items():
        monkeypatch.setattr(decision, name, value)
    words = ["--steps", "3", "--constraint", "dale", "--picture", str(tmp_path / "points.png")]
    (record,) = decision.run(decision.parse(words))
    assert record["slowest"] > 0
    assert "the selection vector reads" in capsys.readouterr().out
    assert (tmp_path / "points.png").stat().st_size > 10_000


@pytest.mark.slow
def test_agents_with_a_memory_learn_a_short_chain_and_those_without_cannot(monkeypatch, capsys):
    monkeypatch.setattr(ppo, "UNITS", 32)
    words = ["--task", "memory", "--length", "4", "--updates", "20", "--seeds", "2"]
    records = list(ppo.run(ppo.parse(words)))
    shares = {cell: [record["right"] for record in records if record["cell"] == cell] for cell in ("gru", "memoryless")}
    assert min(shares["gru"]) > 0.95
    assert max(shares["memoryless"]) < 0.8
    assert "memory, memoryless: greedy return" in capsys.readouterr().out
