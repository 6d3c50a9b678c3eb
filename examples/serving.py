"""Serve a character language model: the streams of many users in one batch, and how long each character takes.

    python examples/serving.py                        on loopback: one stream alone, then 64 at once
    python examples/serving.py --streams 16 --units 512
    python examples/serving.py --folder runs/language_model-1        the model that language_model.py has trained
    python examples/serving.py --port 8000            serve until interrupted, and in another terminal
    curl -N -d '{"prompt": "The yield", "steps": 200}' http://127.0.0.1:8000

Every user has a row of one batch: a state, and the token to be read next. One compiled step advances all rows; rows of
no user idle along. A prompt is read by the same step, a token at a time, so that no length of a prompt and no number of
users compiles anything; users come and go between two steps. Without --folder the weights are as drawn: the text is
noise, but takes as long. The clients that measure are one more process of the same machine.
"""

import argparse
import asyncio
import json
import string
import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import stream_clients
from common.command_line import command_line, main, option
from jaxtyping import Array
from language_model import EMBEDDING, read_plan, restore

import rnnjax

TEMPERATURE, LONGEST = 0.7, 100_000  # bytes of a request
PROMPT = "The yield expression is "
COMPILED = "/jax/core/compile/backend_compile_duration"


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """End the program if there is nothing to measure."""
    if options.streams < 1 or options.steps < 2:
        parser.error(
            f"--streams, --steps: expected at least 1 and 2, got {options.streams} and {options.steps}: the first "
            "character of a stream is measured apart. Pass larger numbers"
        )


parse = command_line(
    __doc__,
    option("--streams", type=int, default=64, help="how many users at once (%(default)s)"),
    option("--steps", type=int, default=200, help="characters for each (%(default)s)"),
    option("--units", type=int, default=256, help="of an LSTM, without --folder (%(default)s)"),
    option("--folder", type=Path, help="a run of language_model.py"),
    option("--port", type=int, help="serve there until interrupted, in place of measuring"),
    check=check_options,
)


class User:
    """The request of one user, and the queue of characters for them."""

    def __init__(self, prompt: list[int], steps: int, seed: int):
        self.tokens, self.read, self.seed = prompt, 0, seed
        self.last = len(prompt) + steps  # of the tokens
        self.written: asyncio.Queue[int | None] = asyncio.Queue()

    def take(self, token: int) -> bool:
        """The token drawn after the one that was read last; whether it is the last one."""
        self.read += 1
        if self.read == len(self.tokens):
            self.tokens.append(token)
            self.written.put_nowait(token)
        return len(self.tokens) == self.last


class Server:
    """A model whose batch has `size` rows."""

    def __init__(self, model: rnnjax.models.LanguageModel, vocabulary: str, size: int):
        self.vocabulary, self.places = vocabulary, {character: n for n, character in enumerate(vocabulary)}
        self.states = jax.jit(lambda: rnnjax.models.batch_of_states(model, size))()
        self.advance = jax.jit(jax.vmap(partial(advance, model)), donate_argnums=0)
        self.rows = np.zeros((3, size), np.int32)  # the token to read, how many were read before it, the seed
        self.users: dict[int, User] = {}
        self.free, self.arrived = asyncio.Queue[int](), asyncio.Event()
        for row in range(size):
            self.free.put_nowait(row)

    async def run(self) -> None:
        """Step after step, for as long as there are users."""
        while True:
            await self.arrived.wait()
            self.step()
            if not self.users:
                self.arrived.clear()
            await asyncio.sleep(0)  # lets the connections send their characters, and new users arrive

    def step(self) -> None:
        """One token for every user."""
        for row, user in self.users.items():
            self.rows[:, row] = user.tokens[user.read], user.read, user.seed
        self.states, drawn = self.advance(self.states, *self.rows)
        tokens = np.asarray(drawn).tolist()
        for row, user in list(self.users.items()):
            if user.take(tokens[row]):
                user.written.put_nowait(None)
                self.leave(row)

    def leave(self, row: int) -> None:
        """Free the row of a user who has all that he asked for, or is gone."""
        if self.users.pop(row, None) is not None:
            self.free.put_nowait(row)

    async def write_on(self, prompt: str, steps: int, seed: int) -> AsyncGenerator[str]:
        """The characters that follow a prompt, each as soon as it is drawn; waits for a row of the batch."""
        user, row = User([self.places[character] for character in prompt], steps, seed), await self.free.get()
        self.users[row] = user
        self.arrived.set()
        try:
            while (token := await user.written.get()) is not None:
                yield self.vocabulary[token]
        finally:
            if self.users.get(row) is user:
                self.leave(row)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request of HTTP, whose answer is a stream of characters."""
        try:
            prompt, steps, seed = self.check(json.loads(await read_body(reader)))
        except (  # a request of another form
            *(ValueError, TypeError, AttributeError, KeyError, RecursionError),
            *(asyncio.IncompleteReadError, asyncio.LimitOverrunError),
        ) as error:
            writer.write(f"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n{error}\n".encode())
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n")
            with suppress(ConnectionError):  # of a user who is gone
                async with aclosing(self.write_on(prompt, steps, seed)) as characters:
                    async for character in characters:
                        writer.write(character.encode())
                        await writer.drain()
        writer.close()

    def check(self, request: Any) -> tuple[str, int, int]:
        """Prompt, steps and seed of a request, if they can be served."""
        prompt, steps, seed = request["prompt"], request.get("steps", 200), request.get("seed", 0)
        unknown = sorted(set(prompt) - set(self.vocabulary))
        if not prompt or unknown:
            raise ValueError(f"prompt: expected characters of the model's vocabulary, got {unknown or 'none'}")
        if not all(isinstance(number, int) and 0 <= number < 2**31 for number in (steps, seed)) or steps == 0:
            raise ValueError(f"steps, seed: expected integers from 1 and from 0 on, got {steps!r} and {seed!r}")
        return prompt, steps, seed


def advance(
    model: rnnjax.models.LanguageModel, state: Any, token: Array, read: Array, seed: Array
) -> tuple[Any, Array]:
    """One step of one row: the state after the token, and the next token drawn. A new user begins with a new state."""
    state = jax.tree.map(lambda first, now: jnp.where(read == 0, first, now), model.initial(), state)
    state, logits = model.step(state, token)
    key = jax.random.fold_in(jax.random.key(seed), read)
    return state, jax.random.categorical(key, logits / TEMPERATURE)


async def read_body(reader: asyncio.StreamReader) -> bytes:
    """The body of a request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    if length > LONGEST:
        raise ValueError(f"expected a request of at most {LONGEST:,} bytes, got {length:,}")
    return await reader.readexactly(length)


async def ask(port: int, clients: int, steps: int) -> list[dict[str, Any]]:
    """The texts and times of clients in a process of their own."""
    words = [sys.executable, stream_clients.__file__, *map(str, (port, clients, steps)), PROMPT]
    process = await asyncio.create_subprocess_exec(*words, stdout=subprocess.PIPE)
    printed, _ = await process.communicate()
    if process.returncode:
        raise RuntimeError("the clients failed: see above")
    return json.loads(printed)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """A list that grows with every program that is compiled."""
    programs: list[str] = []
    listener = lambda event, *_, **__: programs.append(event) if event == COMPILED else None  # noqa: E731
    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@asynccontextmanager
async def listening(server: Server, port: int) -> AsyncGenerator[int]:
    """The port of a server that runs until the end of the block, or until its step fails."""
    async with asyncio.TaskGroup() as group:
        stepping = group.create_task(server.run())
        async with await asyncio.start_server(server.answer, "127.0.0.1", port) as sockets:
            yield sockets.sockets[0].getsockname()[1]
        stepping.cancel()


async def measure(server: Server, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The latency of one stream, and of many at once, after a first request that compiles the step."""
    records: list[dict[str, Any]] = []
    with compilations() as programs:
        async with listening(server, 0) as port:
            await ask(port, 1, 2)
            warm = len(programs)
            print("streams   p50 ms   p99 ms   first ms   characters/s")
            for streams in (1, options.streams):
                answers = await ask(port, streams, options.steps)
                record = {"streams": streams, **latencies([answer["seconds"] for answer in answers])}
                print("{streams:7} {p50:8.2f} {p99:8.2f} {first:10.1f} {rate:14,.0f}".format(**record))
                record |= {"compiled": len(programs) - warm, "texts": [answer["text"] for answer in answers]}
                records.append(record)
    print(f"{records[-1]['compiled']} programs compiled after the first request")
    print(f"the first stream: {PROMPT}{records[-1]['texts'][0][:60]!r}")
    return records


def latencies(seconds: list[list[float]]) -> dict[str, float]:
    """Of all characters but the first ones, of the first ones, in milliseconds; and characters a second."""
    gaps = np.concatenate([each[1:] for each in seconds])
    p50, p99 = 1e3 * np.percentile(gaps, [50, 99])
    first = 1e3 * np.median([each[0] for each in seconds])
    return {"p50": float(p50), "p99": float(p99), "first": float(first), "rate": float(len(seconds) / gaps.mean())}


async def serve(server: Server, port: int) -> None:
    """Serve until interrupted."""
    async with listening(server, port):
        print(f"http://127.0.0.1:{port}", flush=True)
        await asyncio.Event().wait()


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The records of one stream and of many."""
    if options.folder is None:
        vocabulary, keys = string.printable, jax.random.split(jax.random.key(0))
        cell = rnnjax.LSTM(EMBEDDING, options.units, key=keys[0])
        model = rnnjax.models.LanguageModel(len(vocabulary), cell, key=keys[1])
    else:
        plan = read_plan(options.folder)
        model, vocabulary = restore(plan, options.folder), plan.vocabulary

    async def start() -> list[dict[str, Any]]:
        server = Server(model, vocabulary, options.streams)
        return await measure(server, options) if options.port is None else await serve(server, options.port) or []

    with suppress(KeyboardInterrupt):  # ends a server on --port
        yield from asyncio.run(start())


if __name__ == "__main__":
    main(parse, run)
