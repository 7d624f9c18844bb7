"""Scoring and decoding in a process that has neither TensorFlow nor SeqIO give the same numbers."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import tiny_models

from optiml_jax.evaluate.decoding import Prompt, generate
from optiml_jax.evaluate.scoring import ScoreItem, score

PROGRAM = """
import json, sys
for name in ("tensorflow", "seqio", "tensorflow_datasets", "t5"):
    sys.modules[name] = None
from test_without_tensorflow import results
print(json.dumps(results()))
"""


def results():
    engine = tiny_models.engine()
    (scores,) = score(engine, [ScoreItem([5, 6, 7], [[8, 9], [10]])])
    (answer,) = generate(engine, [Prompt([5, 6, 7], 6)])
    return [s.sum_logprob for s in scores], answer.tokens


def test_scoring_and_decoding_run_where_tensorflow_and_seqio_are_not_installed():
    here = pathlib.Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(here)!r}, {str(here.parents[1])!r}]{PROGRAM}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    scores, tokens = json.loads(done.stdout)
    expected, expected_tokens = results()
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert tokens == expected_tokens
