"""Prompt pooling: which of its prompts an example is shown with (OPT-IML paper, section 4.1).

With N examples and P prompts, training draws N items from the pool of all N x P pairs, so that the
size of a task does not depend on the number of its prompts; validation draws a fixed number at
most; tests take every pair. What a prompt is does not matter here.
"""

import hashlib
import random
from collections.abc import Iterator


def pooled(
    num_examples: int, num_prompts: int, num_items: int, key: str
) -> Iterator[tuple[int, ...]]:
    """Draws `num_items` of the `num_examples` x `num_prompts` pairs, without replacement.

    Every set of pairs is equally likely. The draw depends on the arguments alone, and is made while
    the examples go by (Knuth, The Art of Computer Programming 2, 3.4.2, algorithm S), so memory
    does not grow with their number.

    Args:
      num_examples: N.
      num_prompts: P.
      num_items: of the pool; more than N x P means all of it.
      key: seed and whatever tells this draw from others, e.g. "1234/promptsource/copa/train".

    Yields:
      For each example in turn the positions of its prompts, rising; often none.
    """
    rng = random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big"))
    left = num_examples * num_prompts
    wanted = min(num_items, left)
    for _ in range(num_examples):
        chosen = []
        for prompt in range(num_prompts):
            if rng.random() * left < wanted:
                chosen.append(prompt)
                wanted -= 1
            left -= 1
        yield tuple(chosen)


def in_turn(chosen: tuple[int, ...], num_prompts: int, key: str) -> list[int]:
    """The chosen prompts, then those that may take the place of one that does not apply.

    The latter in an order that depends on `key` alone.
    """
    rest = [p for p in range(num_prompts) if p not in chosen]
    return [*chosen, *sorted(rest, key=lambda p: hashlib.sha256(f"{key}\0{p}".encode()).digest())]
