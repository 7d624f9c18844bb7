"""What is exported is what the evaluator feeds: prompts and candidates, token by token.

The evaluator runs with an answerer that keeps what it is given; rows are matched to it by their id.
"""

import collections
import functools
import os
import pathlib
import subprocess
import sys

import exchange_bench as bench
import pytest

from optiml_jax.cli.evaluation_tasks import evaluation_task
from optiml_jax.cli.settings import Evaluate
from optiml_jax.data import chat
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import encode_batch, load_vocabulary
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.evaluator import evaluate_with
from optiml_jax.evaluate.records import Candidate
from optiml_jax.evaluate.runner import Answer
from optiml_jax.exchange.requests import RequestIds, Tokens, request_rows
from tasks.registry import find_sources
from tasks.splits import Manifest

CUT = 16  # positions into which no prompt of the bench fits
REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


class Keeper:
    """An answerer that keeps the ids that it is fed, by request id."""

    def __init__(self, tokens: Tokens):
        self.encode, self.decode, self.max_positions = tokens.encode, tokens.decode, 0
        self.max_positions = tokens.positions
        self.fed: dict[str, tuple] = {}  # request -> prompts, candidates
        self._names: dict[int, str] = {}

    def watch(self, progress) -> None: ...

    def check(self, instances) -> None:
        ids = RequestIds()
        for instance in instances:
            self._names[id(instance)] = ids(instance)

    def _keep(self, instance) -> None:
        key = self._names[id(instance)]
        assert key not in self.fed
        self.fed[key] = instance.contexts or (instance.prompt,), instance.candidate_ids

    def score(self, instances):
        for instance in instances:
            self._keep(instance)
        sizes = dict.fromkeys(("n_tokens", "n_chars", "n_bytes"), 1)
        more = {"sum_logprob": -1.0, "logprob_eos_after": -1.0, "uncond_logprob": -1.0}
        more |= {"is_greedy": False, "n_prompt_tokens_dropped": 0, **sizes}
        return [tuple(Candidate(text=c, **more) for c in i.candidates) for i in instances]

    def generate(self, requests):
        for request in requests:
            self._keep(request.instance)
        return [[Answer("x", 1, True, 0.0, "x")] * (r.samples or 1) for r in requests]


def check_same(
    tasks, tokens: Tokens, config: EvalConfig, folder, asked: PromptConfig = bench.PROMPTS
) -> list[dict]:
    """Exports and evaluates the tasks, compares, and returns the rows."""
    keeper = Keeper(tokens)
    run = {"checkpoint": "x"}
    assert not evaluate_with(keeper, tasks, config, str(folder), prompts=asked, run=run)
    rows = [
        row
        for task in tasks
        for shots in task.info.shots
        for row in request_rows(task, shots, config, asked, tokens)
    ]
    assert len({row["id"] for row in rows}) == len(rows)
    assert {row["id"] for row in rows} == keeper.fed.keys()
    for row in rows:
        prompts, candidates = keeper.fed[row["id"]]
        texts = row.get("prompts", [row["prompt"]])
        assert len(texts) == len(prompts)
        for text, ids in zip(texts, prompts, strict=True):
            assert tokens.decode(ids).lstrip("\ufffd") == text
        if row["kind"] == "rank":
            for i, (text, ids) in enumerate(zip(row["continuations"], candidates, strict=True)):
                own = i if len(texts) > 1 else 0
                whole = tokens.decode([*prompts[own], *ids]).lstrip("\ufffd")
                assert whole == texts[own] + text
        elif not row["is_cut"]:
            messages = [chat.taken_out(asked.chat, text) for text in texts]
            pairs = zip(texts, messages, strict=True)
            framed = [t if m is None else chat.put_in(asked.chat, m) for t, m in pairs]
            assert tokens.encode(framed) == [*prompts]
    return rows


@pytest.mark.parametrize("positions", [bench.POSITIONS, CUT])
def test_every_way_to_ask_is_exported_as_it_is_fed(tmp_path, positions):
    rows = check_same(bench.tasks(), bench.tokens(positions), bench.CONFIG, tmp_path)
    assert any(row["is_cut"] for row in rows) == (positions == CUT)
    assert any(row["num_demonstrations"] for row in rows) == (positions != CUT)


@pytest.mark.parametrize("positions", [bench.POSITIONS, 34])
def test_a_chat_is_exported_as_it_is_fed(tmp_path, positions):
    asked = PromptConfig(chat="<s>user\n{prompt}</s>\n<s>bot\n")
    rows = check_same(bench.tasks(), bench.tokens(positions), bench.CONFIG, tmp_path, asked)
    cut = [row for row in rows if row["is_cut"]]
    assert bool(cut) == (positions == 34)
    for row in rows:
        framed = chat.taken_out(asked.chat, row["prompt"]) is not None
        assert framed != row["task"].endswith("schema"), row  # which is verbatim
        assert not framed or all(t in row["candidates"] for t in row.get("continuations", ()))


REAL = {  # benchmark -> folder of the real data, tasks
    "superni": ("super_natural_instructions", ("task1344_", "task1390_", "task743_")),
    "promptsource": ("promptsource", ("super_glue/cb",)),
    "flan": ("flan", ("cb",)),
    "bbh": (".", ("word_sorting", "snarks", "causal_judgement")),
    "bbh_cot": (".", ("date_understanding",)),
    "mgsm": (".", ("en", "th", "zh")),
}


def test_real_requests_are_what_the_evaluator_feeds(tmp_path, real_data):
    """SuperNI, PromptSource, FLAN, BBH and MGSM with OPT's own vocabulary, at all their shots."""
    vocabulary = load_vocabulary(f"opt:{real_data / 'gpt2_bpe'}")
    tokens = Tokens(functools.partial(encode_batch, vocabulary), vocabulary.spell, 2048)
    manifest = Manifest.load()
    roles = ("dev", "test", "test_max", "test_extra")
    settings = Evaluate(roles=roles, shots=(0, 2, 3, 5, 8))
    tasks = []
    for benchmark, (folder, names) in REAL.items():
        sources = find_sources({benchmark: str(real_data / folder)}, manifest)
        starts = tuple(f"{benchmark}/{name}" for name in names)
        chosen = [s for s in sources if s.name.startswith(starts) and "test" in s.splits]
        tasks += [evaluation_task(s, manifest.row(s), settings) for s in chosen]
    config = EvalConfig(max_examples=3, max_new_tokens=64)
    rows = check_same(tasks, tokens, config, tmp_path)
    counts = collections.Counter(row["task"].split("/")[0] for row in rows)
    assert counts.keys() == REAL.keys()
    assert min(counts.values()) >= 3
    assert {row["kind"] for row in rows} == {"rank", "generate"}


BLOCKED = """
import pathlib, sys
for name in ("tensorflow", "seqio", "tensorflow_datasets"):
    sys.modules[name] = None
from optiml_jax.cli.main import main
assert main(sys.argv[1:]) == 0
(peak,) = (s for s in pathlib.Path("/proc/self/status").read_text().splitlines() if "VmHWM" in s)
print(peak.split()[1])
"""


def test_requests_are_exported_without_tensorflow_in_little_memory(tmp_path, real_data):
    """TensorFlow alone takes most of a gigabyte; all CB requests of FLAN, with five shots."""
    settings = {
        "Run.data": {"flan": str(real_data / "flan")},
        "Run.vocabulary": f"opt:{real_data / 'gpt2_bpe'}",
        "Run.run_dir": str(tmp_path),
        "Run.cache_dir": str(tmp_path),
        "Mixture.name": "m",
        "Evaluate.tasks": ("flan/cb",),
        "Evaluate.shots": (0, 5),
    }
    flags = [f"--gin.{name}={value!r}" for name, value in settings.items()]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, "export", *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = (tmp_path / "export/requests_jsonl/requests.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == 2 * 504
    assert int(done.stdout.splitlines()[-1]) < 1_000_000  # KiB
