import dataclasses

import pytest

from optiml_jax.cli.evaluation_tasks import evaluation_task
from optiml_jax.cli.settings import Evaluate
from optiml_jax.data.example import Example, TaskSource
from tasks.splits import Manifest

EXAMPLE = Example(
    benchmark="crossfit",
    task="crossfit/t",
    category="Misc.",
    prompt_id="p",
    example_id="",
    split="test",
    instruction="Do.",
    input="in",
    target="out",
    references=("out",),
)


@pytest.mark.parametrize(
    ("role", "scored"),
    [(("dev",), 250), (("train", "dev"), 250), (("dev", "test"), 400), (("test_max",), 400)],
)
def test_validation_tasks_are_scored_on_250_pairs_and_tests_on_all(role, scored):
    rows = [dataclasses.replace(EXAMPLE, example_id=str(i)) for i in range(400)]
    source = TaskSource("crossfit/t", ("test",), (), lambda split, drops: iter(rows), list)
    source = dataclasses.replace(source, settings={"category": "Misc."})
    row = Manifest.load().lookup("crossfit/t", None)
    row = dataclasses.replace(row, role=role, level="fully_supervised", metric="em")
    task = evaluation_task(source, row, Evaluate(roles=role))
    examples = task.examples()
    assert len(examples) == len({e.example_id for e in examples}) == scored
    assert examples == task.examples()
    # Section 4.1: validation pools the pairs, tests are averaged per prompt (tables 10 and 11).
    assert task.info.prompts == ("crossed" if scored == 400 else "pooled")
