"""Which words of a task's examples are prompt text: templates, lists of options, instructions.

A prompt repeats its words in every example, in pieces that may be shorter than an n-gram and stand
between texts of the example. So words are considered in shorter runs; an n-gram most of whose words
are prompt text says nothing about the examples.
"""

import numpy as np

from optiml_jax.audit.words import Words

_LEAST_OF_PROMPT = 4  # examples of a prompt, below which nothing is known of what they share
_MOST_OF_PROMPT = 256  # examples inspected, evenly spaced
_ODD = np.uint64(0x9E3779B97F4A7C15)


class PromptWords:
    """Takes in the words of a task's examples, then says which n-grams are made of prompt text.

    Args:
      n: words of an n-gram; runs have half as many.
    """

    def __init__(self, n: int):
        self._n, self._run = n, max(2, n // 2)
        self._runs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # begin, hash, example
        self._begins: list[np.ndarray] = []
        self._words = 0

    def add(self, words: Words, begins: np.ndarray, before: int) -> None:
        """Takes in a batch.

        Args:
          begins: int64[G], the first word of each of the batch's n-grams.
          before: examples of the task in earlier batches.
        """
        starts, hashes = words.ngrams(self._run)
        owners = words.text_of(starts) + before
        place = starts + self._words
        self._runs.append((place.astype(np.uint32), hashes, owners.astype(np.uint32)))
        self._begins.append((begins + self._words).astype(np.uint32))
        self._words += len(words.starts)

    def of_prompts(self, prompts: np.ndarray) -> np.ndarray:
        """bool[G] of all n-grams in their order: at least half of the words are prompt text.

        Args:
          prompts: int64[N], the number of each example's prompt.
        """
        known = self._shared(prompts)
        edges = np.zeros(self._words + self._run + 1, np.int32)
        if len(known):
            for places, hashes, owners in self._runs:
                keys = _key(hashes, prompts[owners])
                found = np.minimum(np.searchsorted(known, keys), len(known) - 1)
                begins = places[known[found] == keys].astype(np.int64)  # none twice
                edges[begins] += 1
                edges[begins + self._run] -= 1
        before = np.zeros(len(edges) + 1, np.int64)  # words of prompts before each word
        np.cumsum(np.cumsum(edges) > 0, out=before[1:])
        begins = np.concatenate(self._begins).astype(np.int64)
        return 2 * (before[begins + self._n] - before[begins]) >= self._n

    def _shared(self, prompts: np.ndarray) -> np.ndarray:
        """uint64[K], ascending: keys of the runs that most examples of their prompt have."""
        sampled = _sample(prompts)
        hashes, owners = [], []
        for _, h, o in self._runs:
            chosen = sampled[o]
            order = np.lexsort((o[chosen], h[chosen]))
            h, o = h[chosen][order], o[chosen][order]
            new = np.ones(len(h), bool)
            new[1:] = (h[1:] != h[:-1]) | (o[1:] != o[:-1])
            hashes.append(h[new])
            owners.append(o[new])
        h, p = np.concatenate(hashes), prompts[np.concatenate(owners)]
        sizes = np.bincount(prompts[sampled], minlength=prompts.max(initial=0) + 1)
        shared = shared_by_prompt(h, p, sizes)
        return np.unique(_key(h[shared], p[shared]))


def _key(hashes: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    return hashes ^ (prompts.astype(np.uint64) * _ODD)


def _sample(prompts: np.ndarray) -> np.ndarray:
    """bool[N]: the inspected examples."""
    order = np.argsort(prompts, kind="stable")
    sizes = np.bincount(prompts)[prompts[order]]
    first = np.searchsorted(prompts[order], prompts[order])
    place = np.arange(len(order)) - first
    step = np.maximum(1, -(-sizes // _MOST_OF_PROMPT))
    sampled = np.zeros(len(prompts), bool)
    sampled[order] = place % step == 0
    return sampled


def shared_by_prompt(hashes: np.ndarray, prompts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """bool[R]: whether more than half of the examples of the row's prompt have its hash.

    Args:
      hashes, prompts: of each (n-gram, example), none twice.
      sizes: number of examples of each prompt.
    """
    order = np.lexsort((hashes, prompts))
    h, p = hashes[order], prompts[order]
    new = np.ones(len(h), bool)
    new[1:] = (h[1:] != h[:-1]) | (p[1:] != p[:-1])
    group = np.cumsum(new) - 1
    counts = np.bincount(group)[group] if len(group) else np.zeros(0, np.int64)
    shared = np.zeros(len(h), bool)
    shared[order] = (2 * counts > sizes[p]) & (sizes[p] >= _LEAST_OF_PROMPT)
    return shared
