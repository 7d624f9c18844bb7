"""`optiml export`: the questions of an evaluation, or the training data, for other programs."""

import logging
import pathlib
import sys

from optiml_jax.cli import main as command_line
from optiml_jax.cli.evaluation_tasks import evaluation_tasks, request_tokens
from optiml_jax.cli.settings import Evaluate, Export, Run, configured, expand
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import load_vocabulary
from optiml_jax.errors import UserError
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.exchange.harness import Harness
from optiml_jax.exchange.request_files import JsonLines, OpenAIBatches, export_requests

_log = logging.getLogger(__name__)


def main() -> int:
    run, settings = configured(Run), Export()
    default = f"{run.run_dir}/export/{settings.what}_{settings.form}"
    folder = pathlib.Path(expand(settings.output or default, "Export.output"))
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists already; remove it, or set Export.output")
    folder.mkdir(parents=True, exist_ok=True)
    return requests(run, settings, folder)


def requests(run: Run, settings: Export, folder: pathlib.Path) -> int:
    """Writes the requests of the evaluation; 1 if some tasks failed."""
    vocabulary = load_vocabulary(run.vocabulary)
    tasks = evaluation_tasks(run, Evaluate(), vocabulary)
    writers = {
        "jsonl": lambda: JsonLines(folder),
        "openai": lambda: OpenAIBatches(folder, settings.model),
        "lm_eval": lambda: Harness(folder, {t.info.task: t for t in tasks}),
    }
    written = export_requests(
        tasks,
        writers[settings.form](),
        folder,
        EvalConfig(),
        PromptConfig(),
        request_tokens(vocabulary, settings),
    )
    cells, number = written["tasks"], sum(c["requests"] for c in written["tasks"])
    print(f"{number} requests of {len(cells)} cells (task x shots): {folder}")
    if settings.form == "lm_eval":
        print(f"run them: lm_eval run --tasks optiml --include_path {folder} --log_samples ...")
    for failure in written["failures"]:
        print("failed: {task} at {shots} shots: {reason}".format(**failure), file=sys.stderr)
    return 1 if written["failures"] else 0


if __name__ == "__main__":
    sys.exit(command_line.main([pathlib.Path(__file__).stem, *sys.argv[1:]]))
