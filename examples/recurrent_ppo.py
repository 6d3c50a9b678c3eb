"""Control with a memory: proximal policy optimisation of a recurrent agent that does not observe all it needs.

    python examples/recurrent_ppo.py
    python examples/recurrent_ppo.py --task memory --length 30 --cell gru lstm memoryless
    python examples/recurrent_ppo.py --seeds 5

Two tasks, in JAX below: CartPole of at most 500 steps whose velocities are not observed, so that they have to be
estimated from earlier positions; and a memory chain, after that of bsuite (Osband et al. 2020, arXiv:1908.03568): a
sign is shown at the first step alone, and asked for at the last one.

PPO (Schulman et al. 2017, arXiv:1707.06347) with generalised advantages. Rollouts and learning are one program under
`jit`, and `vmap` makes it one of several seeds. An agent's state lasts from one rollout to the next, and `resets=` sets
it back where an episode ends. The limit of CartPole counts as a failure: the value beyond it is taken as zero, although
the agent observes neither the limit nor the time. Prints the reward per episode while it learns, and that of the greedy
policy at the end.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from common.command_line import SEED, choice, command_line, main, option
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

import rnnjax

UNITS, AGENTS, T, EPOCHS, MINIBATCHES = 64, 16, 128, 4, 4
LENGTH = 30  # of the memory chain
LEARNING_RATE, DISCOUNT, LAMBDA, CLIP, ENTROPY, VALUE, EPISODES, REPORTS = 1e-3, 0.99, 0.95, 0.2, 0.01, 0.5, 64, 10


class Environment(NamedTuple):
    """A task, as functions of one state; an episode ends after `limit` steps at the latest."""

    inputs: int
    actions: int
    limit: int
    scale: float  # of rewards, so that values are of order one to ten
    reset: Callable[[PRNGKeyArray], Any]
    observe: Callable[[Any], Float[Array, " I"]]
    step: Callable[[Any, Int[Array, ""]], tuple[Any, Float[Array, ""], Bool[Array, ""]]]  # state, reward, end


class Pole(NamedTuple):
    """Position and velocity of the cart, angle and angular velocity of the pole; steps taken."""

    physics: Float[Array, " 4"]
    time: Int[Array, ""]


def cart_pole(_: int) -> Environment:
    """CartPole with the constants of Barto, Sutton & Anderson 1983, as in Gym, without velocities."""
    gravity, pole, half_length, mass, force, dt = 9.8, 0.1, 0.5, 1.1, 10.0, 0.02
    farthest, steepest, limit = 2.4, 12 * np.pi / 180, 500

    def reset(key: PRNGKeyArray) -> Pole:
        return Pole(jax.random.uniform(key, (4,), minval=-0.05, maxval=0.05), jnp.zeros((), int))

    def step(state: Pole, action: Array) -> tuple[Pole, Array, Array]:
        _, velocity, angle, turning = state.physics
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        push = (jnp.where(action == 1, force, -force) + pole * half_length * turning**2 * sine) / mass
        inertia = half_length * (4 / 3 - pole * cosine**2 / mass)
        angular = (gravity * sine - cosine * push) / inertia
        linear = push - pole * half_length * angular * cosine / mass
        physics = state.physics + dt * jnp.stack([velocity, linear, turning, angular])
        after = Pole(physics, state.time + 1)
        fallen = (jnp.abs(physics[0]) > farthest) | (jnp.abs(physics[2]) > steepest)
        return after, jnp.ones(()), fallen | (after.time >= limit)

    observe = lambda state: state.physics[jnp.array([0, 2])] / jnp.array([farthest, steepest])  # noqa: E731
    return Environment(2, 2, limit, 0.1, reset, observe, step)


class Chain(NamedTuple):
    """The sign to be remembered, 0 or 1; steps taken."""

    sign: Int[Array, ""]
    time: Int[Array, ""]


def memory_chain(length: int) -> Environment:
    """A sign is seen at step 0 and asked for at step `length`, where the reward is 1 or -1."""

    def reset(key: PRNGKeyArray) -> Chain:
        return Chain(jax.random.bernoulli(key).astype(int), jnp.zeros((), int))

    def observe(state: Chain) -> Array:
        shown = jnp.where(state.time == 0, 2 * state.sign - 1, 0)
        return jnp.stack([shown, state.time / length, state.time == length]).astype(float)

    def step(state: Chain, action: Array) -> tuple[Chain, Array, Array]:
        end = state.time == length
        reward = jnp.where(end, jnp.where(action == state.sign, 1.0, -1.0), 0.0)
        return Chain(state.sign, state.time + 1), reward, end

    return Environment(3, 2, length + 1, 1.0, reset, observe, step)


TASKS = {"cartpole": cart_pole, "memory": memory_chain}


def memoryless(inputs: int, units: int, *, key: PRNGKeyArray) -> rnnjax.AbstractNetwork:
    """One more layer in the place of the recurrent one."""
    layer = rnnjax.TimeDistributed(eqx.nn.Linear(inputs, units, key=key), inputs)
    return rnnjax.Stack([layer, rnnjax.TimeDistributed(jnp.tanh, units)])


CELLS: dict[str, Callable[..., Any]] = {
    "gru": rnnjax.GRU,
    "lstm": rnnjax.LSTM,
    "elman": rnnjax.Elman,
    "mingru": rnnjax.MinGRU,
    "memoryless": memoryless,
}


class Agent(eqx.Module):
    """An actor and a critic on one recurrent network, which has seen all observations of the episode so far."""

    encoder: eqx.nn.Linear
    network: Any
    policy: eqx.nn.Linear
    value: eqx.nn.Linear

    def __init__(self, cell: str, inputs: int, actions: int, *, key: PRNGKeyArray):
        keys = jax.random.split(key, 4)
        self.encoder = eqx.nn.Linear(inputs, UNITS, key=keys[0])
        self.network = CELLS[cell](UNITS, UNITS, key=keys[1])
        small = eqx.nn.Linear(UNITS, actions, key=keys[2])
        self.policy = eqx.tree_at(lambda layer: layer.weight, small, 0.01 * small.weight)
        self.value = eqx.nn.Linear(UNITS, 1, key=keys[3])

    def __call__(self, memory: Any, observed: Array, resets: Array) -> tuple[Any, Array, Array]:
        """The memory after these steps [T, I] of one agent, and logits and values of each."""
        xs = jnp.tanh(jax.vmap(self.encoder)(observed))
        memory, ys = rnnjax.unroll(self.network, memory, xs, resets=resets)
        return memory, jax.vmap(self.policy)(ys), jax.vmap(self.value)(ys)[:, 0]

    def one_step(self, memory: Any, observed: Array, resets: Array) -> tuple[Any, Array, Array]:
        """The same of one step [B, I] of many agents."""
        memory, logits, values = jax.vmap(self)(memory, observed[:, None], resets[:, None])
        return memory, logits[:, 0], values[:, 0]


class Place(NamedTuple):
    """Where each agent is: the state of its environment, whether an episode begins, and its memory."""

    state: Any
    begins: Bool[Array, " B"]
    memory: Any


class Rollout(NamedTuple):
    """Steps of each agent, [B, T]."""

    observed: Array
    begins: Array
    actions: Array
    log_probabilities: Array
    values: Array
    rewards: Array
    ends: Array


class Learner(NamedTuple):
    """All that lasts from one update to the next."""

    agent: Agent
    optimiser: Any
    place: Place
    key: PRNGKeyArray


def begin(environment: Environment, agent: Agent, count: int, key: PRNGKeyArray) -> Place:
    states = jax.vmap(environment.reset)(jax.random.split(key, count))
    memory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape)), agent.network.initial())
    return Place(states, jnp.ones(count, bool), memory)


def act(
    environment: Environment, agent: Agent, choose: Callable[..., Array], place: Place, key: PRNGKeyArray
) -> tuple[Place, Rollout]:
    """One step of all agents; where an episode ends, the next one begins."""
    draw, renew = jax.random.split(key)
    observed = jax.vmap(environment.observe)(place.state)
    memory, logits, values = agent.one_step(place.memory, observed, place.begins)
    actions = choose(draw, logits)
    log_probabilities = jnp.take_along_axis(jax.nn.log_softmax(logits), actions[:, None], 1)[:, 0]
    after, rewards, ends = jax.vmap(environment.step)(place.state, actions)
    fresh = jax.vmap(environment.reset)(jax.random.split(renew, len(ends)))
    state = jax.vmap(lambda end, fresh, after: jax.tree.map(partial(jnp.where, end), fresh, after))(ends, fresh, after)
    return Place(state, ends, memory), Rollout(
        observed, place.begins, actions, log_probabilities, values, rewards, ends
    )


def advantages(rollout: Rollout, last: Float[Array, " B"], scale: float) -> Float[Array, "B T"]:
    """Generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438), from the last step to the first."""

    def back(carry: tuple[Array, Array], step: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], Array]:
        following, next_value = carry
        reward, value, end = step
        goes_on = DISCOUNT * (1 - end)
        advantage = scale * reward + goes_on * next_value - value + goes_on * LAMBDA * following
        return (advantage, value), advantage

    over_time = jax.tree.map(jnp.transpose, (rollout.rewards, rollout.values, rollout.ends.astype(float)))
    return jax.lax.scan(back, (jnp.zeros_like(last), last), over_time, reverse=True)[1].T


def replay(agent: Agent, memory: Any, rollout: Rollout) -> tuple[Array, Array]:
    """Logarithms of the policy [B, T, A] and values [B, T] of a rollout, from the memory at its first step."""
    _, logits, values = jax.vmap(agent)(memory, rollout.observed, rollout.begins)
    return jax.nn.log_softmax(logits), values


def loss(agent: Agent, memory: Any, rollout: Rollout, gains: Array) -> Array:
    """PPO's clipped objective, the value's squared error and the entropy, of whole rollouts."""
    log_policy, values = replay(agent, memory, rollout)
    chosen = jnp.take_along_axis(log_policy, rollout.actions[..., None], 2)[..., 0]
    ratio = jnp.exp(chosen - rollout.log_probabilities)
    normal = (gains - gains.mean()) / (gains.std() + 1e-8)
    gained = jnp.minimum(ratio * normal, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * normal).mean()
    error = ((values - rollout.values - gains) ** 2).mean() / 2
    entropy = -(jnp.exp(log_policy) * log_policy).sum(-1).mean()
    return VALUE * error - gained - ENTROPY * entropy


def collect(
    environment: Environment, agent: Agent, place: Place, key: PRNGKeyArray
) -> tuple[Place, tuple[Any, Rollout, Array]]:
    """Where the agents are after T steps; the memory at the first of them, the rollout and its advantages."""
    step = partial(act, environment, agent, jax.random.categorical)
    after, rollout = jax.lax.scan(step, place, jax.random.split(key, T))
    rollout = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), rollout)
    last = agent.one_step(after.memory, jax.vmap(environment.observe)(after.state), after.begins)[2]
    return after, (place.memory, rollout, advantages(rollout, last, environment.scale))


def update(environment: Environment, rule: Any, learner: Learner, _: None) -> tuple[Learner, tuple[Array, Array]]:
    """Collect T steps and learn from them: the new agent, the sum of the rewards, and how many episodes ended."""
    agent, optimiser, place, key = learner
    key, acting, shuffling = jax.random.split(key, 3)
    after, batch = collect(environment, agent, place, acting)
    rollout = batch[1]

    def minibatch(carry: tuple[Agent, Any], chosen: Array) -> tuple[tuple[Agent, Any], None]:
        agent, optimiser = carry
        gradient = jax.grad(loss)(agent, *jax.tree.map(lambda leaf: leaf[chosen], batch))
        updates, optimiser = rule.update(gradient, optimiser)
        return (eqx.apply_updates(agent, updates), optimiser), None

    orders = jax.vmap(lambda key: jax.random.permutation(key, AGENTS))(jax.random.split(shuffling, EPOCHS))
    chosen = orders.reshape(EPOCHS * MINIBATCHES, -1)
    (agent, optimiser), _ = jax.lax.scan(minibatch, (agent, optimiser), chosen)
    return Learner(agent, optimiser, after, key), (rollout.rewards.sum(), rollout.ends.sum())


def judge(environment: Environment, agent: Agent, key: PRNGKeyArray) -> Float[Array, ""]:
    """The mean return of the first episode of many agents that take the likeliest action."""
    greedy = lambda _, logits: logits.argmax(-1)  # noqa: E731
    drawn, acting = jax.random.split(key)
    place = begin(environment, agent, EPISODES, drawn)
    step = partial(act, environment, agent, greedy)
    _, rollout = jax.lax.scan(step, place, jax.random.split(acting, environment.limit))
    ended_before = jnp.cumsum(rollout.ends, 0) - rollout.ends
    return jnp.where(ended_before == 0, rollout.rewards, 0).sum(0).mean()


def train(environment: Environment, cell: str, updates: int, seeds: range) -> Float[np.ndarray, " seeds"]:
    """The mean return of the trained agent of each seed."""
    rate = optax.linear_schedule(LEARNING_RATE, 0.0, updates * EPOCHS * MINIBATCHES)
    rule = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(rate, eps=1e-5))

    @jax.jit
    @jax.vmap
    def start(key: PRNGKeyArray) -> Learner:
        drawn, placed, key = jax.random.split(key, 3)
        agent: Any = Agent(cell, environment.inputs, environment.actions, key=drawn)
        return Learner(agent, rule.init(agent), begin(environment, agent, AGENTS, placed), key)

    part = max(1, updates // REPORTS)

    @partial(jax.jit, static_argnums=1)
    def go_on(learners: Learner, count: int) -> tuple[Learner, tuple[Array, Array]]:
        several = lambda learner: jax.lax.scan(partial(update, environment, rule), learner, None, count)  # noqa: E731
        return jax.vmap(several)(learners)

    learners = start(jnp.stack([jax.random.key(seed) for seed in seeds]))
    for done in range(0, updates, part):
        count = min(part, updates - done)
        learners, (rewards, ended) = go_on(learners, count)
        steps = (done + count) * AGENTS * T
        print(f"{cell}: reward per episode {rewards.sum() / ended.sum():.1f}, to step {steps:,}", flush=True)
    keys = jax.random.split(jax.random.key(10_000), len(seeds))
    return np.asarray(jax.jit(jax.vmap(partial(judge, environment)))(learners.agent, keys))


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A record of each cell and seed."""
    environment = TASKS[options.task](options.length)
    for cell in options.cell:
        seeds, begun = range(options.seed, options.seed + options.seeds), time.perf_counter()
        returns = train(environment, cell, options.updates, seeds)
        spread = f"{returns.mean():.3g} ({returns.min():.3g} to {returns.max():.3g})"
        print(f"{options.task}, {cell}: greedy return {spread}, after {time.perf_counter() - begun:.0f} s", flush=True)
        for seed, value in zip(seeds, returns, strict=True):
            right = {"right": (float(value) + 1) / 2} if options.task == "memory" else {}
            yield {"task": options.task, "cell": cell, "seed": seed, "test": float(value), **right}


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Counts are at least 1, and a length belongs to the memory chain."""
    if options.task != "memory" and options.length is not None:
        parser.error(f"--length: expected none with --task {options.task}, got {options.length}. Pass --task memory.")
    options.length = LENGTH if options.length is None else options.length
    for name in ("length", "updates", "seeds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: expected at least 1, got {getattr(options, name)}. Pass a larger one.")


parse = command_line(
    __doc__,
    choice("--task", TASKS, "cartpole"),
    option("--cell", nargs="+", choices=CELLS, default=["gru", "memoryless"], help="default: %(default)s"),
    option("--length", type=int, help=f"of the memory chain ({LENGTH})"),
    option("--updates", type=int, default=400, help=f"each of a rollout of {AGENTS} agents, {T} steps (%(default)s)"),
    option("--seeds", type=int, default=1, help="how many, trained in one program (%(default)s)"),
    SEED,
    check=check_options,
)


if __name__ == "__main__":
    main(parse, run)
