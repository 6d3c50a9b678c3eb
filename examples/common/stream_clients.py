"""Clients of a server that streams text: many at once, in a process of their own, which tell when each character came.

`python stream_clients.py PORT CLIENTS STEPS PROMPT` prints a JSON list: of each client the text, and the seconds from
the request to the first character, then from each character to the next. It needs the standard library alone.
"""

import asyncio
import json
import sys
import time
from typing import Any


async def ask(port: int, prompt: str, steps: int, seed: int) -> dict[str, Any]:
    """One client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": prompt, "steps": steps, "seed": seed}).encode()
    before, text, seconds = time.perf_counter(), b"", []
    writer.write(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head = await reader.readuntil(b"\r\n\r\n")
    while received := await reader.read(4096):
        now = time.perf_counter()
        characters = sum(byte & 0xC0 != 0x80 for byte in received)  # the other bytes of UTF-8 go on with one
        text, seconds = text + received, seconds + [now - before, *[0.0] * (characters - 1)][:characters]
        before = now if characters else before
    writer.close()
    if b" 200 " not in head.partition(b"\r\n")[0]:
        raise RuntimeError(text.decode())
    return {"text": text.decode(), "seconds": seconds}


async def ask_all(port: int, clients: int, steps: int, prompt: str) -> list[dict[str, Any]]:
    """All clients at once, each with a seed of its own."""
    return await asyncio.gather(*(ask(port, prompt, steps, seed) for seed in range(clients)))


if __name__ == "__main__":
    port, clients, steps, prompt = sys.argv[1:]
    print(json.dumps(asyncio.run(ask_all(int(port), int(clients), int(steps), prompt))))
