"""Counts the programs that an evaluation compiles, and the tokens processed including padding.

Nothing is compiled or run: the jitted functions are replaced by ones that record their argument
shapes and return zeros of the right shape. Run it in two versions of the code to compare.

    python tools/bench/evaluation_programs.py --gin_file=FILE --gin.NAME=VALUE ...
"""

import collections
import sys
from typing import Any

import jax
import numpy as np

from optiml_jax.cli import main as command_line
from optiml_jax.evaluate import decoding, prefixes, scoring

_WITHOUT_MODEL = ("_jit_empty", "_jit_put")
shapes: dict[str, dict] = collections.defaultdict(dict)  # program -> shapes -> result
tokens: collections.Counter = collections.Counter()


def pretend(module: Any, name: str, result: Any = lambda out, args: out) -> None:
    """Replaces a jitted function by one that computes nothing.

    Args:
      result: turns the zeros into the result, given the arguments.
    """
    function = getattr(module, name)

    def shape_only(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args[2:] if name not in _WITHOUT_MODEL else args)
        described = tuple(
            (x.shape, str(x.dtype)) if hasattr(x, "shape") else type(x).__name__ for x in leaves
        )
        if name == "_jit_empty" or (name == "_jit_run_prefix" and isinstance(args[3], int)):
            described += args[1:] if name == "_jit_empty" else (args[3],)  # static numbers
        outputs = shapes[name]
        if (described, tree) not in outputs:
            outputs[described, tree] = function.eval_shape(*args)
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), outputs[described, tree])
        return result(zeros, args)

    setattr(module, name, shape_only)


def counted(kind: str, index: int) -> Any:
    def result(out: Any, args: tuple) -> Any:
        tokens[kind] += int(np.prod(args[index].shape))
        return out

    return result


def stepped(out: Any, args: tuple) -> Any:
    slots, new, logprobs, _ = out
    left = np.asarray(args[5])
    tokens["decoding"] += len(left) * int(min(left.max(), new.shape[1]))
    return slots, new + 5, logprobs, np.minimum(left, new.shape[1])


def main() -> None:
    pretend(scoring, "_jit_score_places", counted("scoring", 3))
    pretend(prefixes, "_jit_run_prefix", counted("prefixes", -2))
    pretend(decoding, "_jit_empty")
    pretend(decoding, "_jit_read", counted("reading", 5))
    pretend(decoding, "_jit_put")
    pretend(decoding, "_jit_step", stepped)
    status = command_line.main(["evaluate", *sys.argv[1:]])
    for name, found in shapes.items():
        print(f"{name.removeprefix('_jit_'):14} {len(found):4} programs")
    print(f"{'all':14} {sum(map(len, shapes.values())):4} programs")
    print(", ".join(f"{kind} {number:,} tokens" for kind, number in tokens.items()))
    raise SystemExit(status)


if __name__ == "__main__":
    main()
