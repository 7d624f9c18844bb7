"""Writes docs/configurations.md, the final configurations side by side, from their gin files.

    python tools/configurations.py

A test compares the page with this module's output for the present files.
"""

import pathlib
from typing import Any

import gin
import yaml

from optiml_jax.cli.main import parse_gin
from optiml_jax.cli.settings import Evaluate, configured
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.plan import PlanConfig
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.model.architectures import model_config
from optiml_jax.report.tables import Table, render
from optiml_jax.sharding.mesh import MeshConfig
from optiml_jax.train.config import TrainConfig
from optiml_jax.train.optimizer import OptimizerConfig
from tasks.splits import SplitConfig

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "configurations.md"
TABLE_3 = REPOSITORY / "tasks" / "data" / "table3.yaml"
RUNS = {
    "optiml_1_3b": "OPT-IML 1.3B",
    "optiml_30b": "OPT-IML 30B",
    "optiml_175b": "OPT-IML 175B",
    "optiml_max_1_3b": "Max 1.3B",
    "optiml_max_30b": "Max 30B",
    "optiml_max_175b": "Max 175B",
}
HEAD = """# The final configurations

OPT-IML and OPT-IML-Max as this project trains them, read from `gin/runs/*.gin` by
`python tools/configurations.py`; only the notes are written by hand. The paper's figures are below.

"""
NOTES = """
- Slots are steps x rows x length; there are slightly fewer tokens, since a few slots in a thousand
  stay empty. Table 3 says 2B tokens for 4,000 x 256 x 2,048 = 2.1 billion slots.
- The paper prints no table for Max: sections 5 and 6.1 say that it is OPT-IML on all tasks, and the
  steps are those in the names of the released checkpoints. OPT-IML 1.3B is not in the paper.
- The number of GPUs is table 3's; the mesh adapts to the number of devices (`tensor` devices split
  every matrix product, the others shard parameters and rows). Which devices it fits:
  [compile.md](compile.md).
- The paper trains in float16 with dynamic loss scaling, this project in bfloat16, which needs none.
- What each mixture leaves out, and where the paper is silent: [mixtures.md](mixtures.md).
"""


def rows() -> list[tuple[str, ...]]:
    """The page's table: what, then its value in each run."""
    columns = [settings(name) for name in RUNS]
    return [(what, *(column[what] for column in columns)) for what in columns[0]]


def settings(name: str) -> dict[str, str]:
    """What the gin file of a run sets, in words, in the page's order."""
    gin.clear_config()
    parse_gin(["train"], [f"--gin_file=gin/runs/{name}.gin"])
    model, mixture, mesh = model_config(), configured(Mixture), MeshConfig()
    train = configured(TrainConfig, plan_dir="", run_dir="")
    optimizer, plan = OptimizerConfig(), PlanConfig(num_rows=1)
    evaluate, prompts = Evaluate(), PromptConfig()
    slots = train.num_steps * train.global_batch_size * plan.sequence_length
    values = {
        "layers x width x heads": f"{model.num_layers} x {model.d_model} x {model.num_heads}",
        "starts from": train.init_from,
        "collections": _listed(sorted({glob.split("/")[0] for glob in mixture.tasks})),
        "roles of the tasks trained on": _listed(mixture.roles),
        "tasks of CrossFit and T5 in other collections too": _left_out(SplitConfig().unique_tasks),
        "maximum examples per task": _caps(mixture),
        "mixing-rate maximum (EPS)": f"{mixture.eps:,}",
        "proportions": _shares(mixture.proportions, ""),
        "share of the examples": _shares(mixture.shares, " %", 100),
        "share of the updates": _shares(mixture.row_shares, " %", 100),
        "demonstrations in training": "none" if prompts.shots == (1.0,) else str(prompts.shots),
        "row length": f"{plan.sequence_length:,}",
        "rows per update": f"{train.global_batch_size:,}",
        "steps": f"{train.num_steps:,}",
        "slots": f"{slots / 1e9:.2f} billion",
        "optimiser": f"AdamW, betas {optimizer.beta1:g} and {optimizer.beta2:g}, epsilon "
        f"{optimizer.epsilon:g}, weight decay {optimizer.weight_decay:g}",
        "learning rate": f"{optimizer.learning_rate:g}, {optimizer.warmup_steps} steps of warm-up, "
        "then linearly to 0",
        "maximum gradient norm": f"{optimizer.clip_norm:g}",
        "dropout": f"{model.dropout:g}, attention {model.attention_dropout:g}",
        "precision": f"computed in {model.dtype}; weights and moments float32",
        "recomputed": model.remat,
        "mesh": f"tensor {mesh.tensor}, preset {mesh.preset}",
        "microbatches": str(train.num_microbatches),
        "seed": f"weights {train.seed}, order {plan.seed}",
        "evaluated at shots": _listed(map(str, evaluate.shots)),
    }
    gin.clear_config()
    return {name: value or "none" for name, value in values.items()}


def page() -> str:
    """The whole page."""
    table = Table("As configured", ("", *RUNS.values()), tuple(rows()), 7)
    return HEAD + render(table, "markdown") + "\n" + render(_printed(), "markdown") + NOTES


def _printed() -> Table:
    """Table 3 as printed."""
    facts = yaml.safe_load(TABLE_3.read_text("utf-8"))
    names = ("gpus", "batch", "learning_rate", "steps", "warmup", "hours", "tokens")
    lines = tuple(
        (RUNS[run], *(f"{own[n]:g}" if isinstance(own[n], float) else str(own[n]) for n in names))
        for run, own in facts["models"].items()
    )
    text = facts["text"]
    note = (
        f"section 3.3: Adam with betas {text['beta1']:g} and {text['beta2']:g}, dropout "
        f"{text['dropout']:g}, maximum gradient norm {text['clip_norm']:g}, rows of "
        f"{text['row_length']:,}"
    )
    columns = ("model", "GPUs", "batch", "learning rate", "steps", "warm-up", "hours", "tokens")
    return Table("Table 3 of the paper", columns, lines, 1, (note,))


def _listed(words: Any) -> str:
    return ", ".join(words)


def _left_out(unique: bool) -> str:
    return "left out" if unique else "kept"


def _caps(mixture: Mixture) -> str:
    own = [f"{b} {n:,}" for b, n in mixture.benchmark_max_examples.items()]
    general = f"{mixture.max_examples:,}" if mixture.max_examples else "no limit"
    return _listed([general, *own])


def _shares(shares: Any, unit: str, scale: float = 1) -> str:
    return _listed(f"{name} {scale * share:g}{unit}" for name, share in (shares or {}).items())


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
    print(f"written: {PAGE}")
