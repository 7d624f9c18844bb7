"""A bench of three small tasks in the SuperNI format, with a vocabulary and a gin file for it."""

import json
import pathlib

from optiml_jax.data.vocabulary import train_sentencepiece

WORDS = ["red", "green", "blue", "white", "black", "pink", "grey", "brown"]
GIN = """
Run.data = {{'demo_superni': '{root}/bench'}}
Run.vocabulary = 'sentencepiece:{root}/vocabulary.model'
Run.cache_dir = '{root}/cache'
Run.run_dir = '{root}/run'
Mixture.name = 'tiny'
Mixture.tasks = ('demo_superni/*',)
PlanConfig.sequence_length = 128
model_config.d_model = 16
model_config.num_layers = 1
model_config.num_heads = 2
model_config.max_positions = 128
MeshConfig.data = -1
MeshConfig.fsdp = 1
TrainConfig.num_steps = 4
TrainConfig.global_batch_size = 8
TrainConfig.log_every = 2
TrainConfig.checkpoint_every = 2
TrainConfig.validate_every = 2
TrainConfig.validation_batches = 1
OptimizerConfig.warmup_steps = 1
Evaluate.shots = (0, 2)
EvalConfig.max_new_tokens = 4
EvalConfig.max_examples = 3
"""


def task_file(definition: str, word: int, category: str) -> dict:
    """A task whose answer is the `word`-th word of its input."""
    inputs = [f"{a} {b} {c}" for a in WORDS for b in WORDS for c in WORDS if a != b != c][:60]
    pairs = [{"input": text, "output": text.split()[word]} for text in inputs]
    return {
        "Categories": [category],
        "Definition": [definition],
        "Positive Examples": [{**p, "explanation": ""} for p in pairs[-2:]],
        "Instances": [
            {"id": f"i{n}", "input": p["input"], "output": [p["output"]]}
            for n, p in enumerate(pairs[:-2])
        ],
    }


def write_tiny_bench(root: pathlib.Path) -> pathlib.Path:
    """Writes bench, vocabulary and gin file below `root`; returns the gin file."""
    tasks = {
        "demo901_program_execution_first": ("Give the first word.", 0, "Program Execution"),
        "demo902_program_execution_second": ("Give the second word.", 1, "Program Execution"),
        "demo903_program_execution_third": ("Give the last word.", 2, "Program Execution"),
    }
    for folder in ("tasks", "splits/default"):
        (root / "bench" / folder).mkdir(parents=True)
    for stem, arguments in tasks.items():
        content = json.dumps(task_file(*arguments), indent=1)
        (root / "bench" / "tasks" / f"{stem}.json").write_text(content)
    *train, test = tasks
    (root / "bench/splits/default/train_tasks.txt").write_text("\n".join(train) + "\n")
    (root / "bench/splits/default/test_tasks.txt").write_text(test + "\n")
    texts = [f"Instructions: {d}\nInput: {' '.join(WORDS)}" for d, _, _ in tasks.values()]
    train_sentencepiece(texts, root / "vocabulary.model", 300)
    gin_file = root / "tiny.gin"
    gin_file.write_text(GIN.format(root=root))
    return gin_file
