"""The evaluator: what it stores, how it continues, and what it does with tasks that fail."""

import collections
import dataclasses
import errno
import os
import re

import numpy as np
import pytest
import toy_evaluation as toy

from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.vocabulary import vocabulary_fingerprint
from optiml_jax.errors import UserError
from optiml_jax.evaluate import evaluator
from optiml_jax.evaluate.batching import Engine
from optiml_jax.evaluate.config import EvalConfig
from optiml_jax.evaluate.metric_calls import call_metric_fns
from optiml_jax.evaluate.origin import Origin
from optiml_jax.evaluate.protocol import Protocol
from optiml_jax.evaluate.records import RULES, RunFolder
from optiml_jax.evaluate.rollup import Key, rollup
from optiml_jax.evaluate.scoring import ScoreItem, score


def ids(text):
    return toy.vocabulary().encode(text)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A ranking and a generation task, 0 and 2 shots."""
    folder = tmp_path_factory.mktemp("finished")
    tasks = [
        toy.eval_task("b/rank", "acc_rank", shots=(0, 2)),
        toy.eval_task("b/gen", "rougeL", shots=(0, 2)),
    ]
    assert toy.run(tasks, folder) == []
    return RunFolder(folder)


def test_every_score_component_of_every_candidate_is_stored(finished):
    records, _ = finished.read("b/rank", 0)
    config, graphdef, params = toy.model()
    engine = Engine(graphdef, params, config)
    assert [r.example_id for r in records] == [f"test{i}" for i in range(5)]
    for i, record in enumerate(records):
        assert [c.text for c in record.candidates] == ["yes", "no", "blue seven"]
        assert record.correct == (i % 3,)
        prompt = ids(f"Instructions: Say it.\nInput: {toy.ranking_example('t', i).input}\nOutput:")
        for candidate in record.candidates:
            tokens = ids(f" {candidate.text}")
            ((plain,), (alone,)) = score(
                engine, [ScoreItem(prompt, [tokens]), ScoreItem(ids("Answer:"), [tokens])]
            )
            assert candidate.sum_logprob == pytest.approx(plain.sum_logprob, abs=1e-4)
            assert candidate.uncond_logprob == pytest.approx(alone.sum_logprob, abs=1e-4)
            assert candidate.logprob_eos_after == pytest.approx(plain.logprob_eos_after, abs=1e-4)
            assert candidate.is_greedy == plain.is_greedy
            assert candidate.n_tokens == len(tokens)
            assert candidate.n_chars == candidate.n_bytes == len(candidate.text)
        best = max(record.candidates, key=RULES["sum"])
        assert record.prediction == best.text
        assert record.score == float(best.text in record.references)


def test_the_summary_holds_the_seqio_metrics_and_how_they_came_about(finished):
    for task, metric in (("b/rank", "accuracy"), ("b/gen", "rougeL")):
        for shots in (0, 2):
            records, summary = finished.read(task, shots)
            assert summary["metrics"][metric] == pytest.approx(
                100 * np.mean([r.score for r in records])
            )
            assert summary["effective_shots"] == {"mean": shots, "min": shots}
            assert summary["num_truncated"] == 0
            assert summary["delimiter"] == "\nOutput:"
            assert all(r.demonstration_ids == ("train0", "train1")[:shots] for r in records)
    assert finished.read("b/rank", 0)[1]["best_constant"] == {"answer": "yes", "score": 0.4}
    run, _ = finished.load()
    assert run["delimiter"] == "\nOutput:"
    assert run["vocabulary"] == vocabulary_fingerprint(toy.vocabulary())


def test_delimiter_and_separator_are_those_of_evaluation_whatever_training_draws():
    drawn = PromptConfig(delimiter=None, separator=("\n\n\n", "##"))
    usual = evaluator.prompts_of_evaluation(drawn, EvalConfig())
    assert (usual.delimiter, usual.separator) == ("\nOutput:", "\n\n\n")
    other = evaluator.prompts_of_evaluation(drawn, EvalConfig(delimiter=" A:", separator="@@"))
    assert (other.delimiter, other.separator) == (" A:", "@@")
    with pytest.raises(UserError, match=r"EvalConfig\.separator is empty"):
        EvalConfig(separator="")


def test_generated_text_stops_at_the_limit_or_at_eos(finished):
    records, summary = finished.read("b/gen", 0)
    assert all(1 <= r.n_new_tokens <= 6 for r in records)
    assert all(r.n_new_tokens == 6 or r.finished for r in records)
    assert summary["num_unfinished"] == sum(not r.finished for r in records)


def test_records_do_not_depend_on_rounds_and_batches(finished, tmp_path):
    tasks = [
        toy.eval_task("b/gen", "rougeL", shots=(2, 0)),
        toy.eval_task("b/rank", "acc_rank", shots=(2, 0)),
    ]
    toy.run(tasks, tmp_path, dataclasses.replace(toy.CONFIG, instances_per_round=1))
    for task in ("b/gen", "b/rank"):
        for shots in (0, 2):
            first, _ = finished.read(task, shots)
            second, _ = RunFolder(tmp_path).read(task, shots)
            for a, b in zip(first, second, strict=True):
                assert a.prediction == b.prediction
                assert [c.sum_logprob for c in a.candidates] == pytest.approx(
                    [c.sum_logprob for c in b.candidates], abs=1e-4
                )


def test_an_interrupted_evaluation_continues_where_it_stopped(tmp_path):
    config = dataclasses.replace(toy.CONFIG, instances_per_round=1)
    read = []

    def task(name, interrupt=False):
        plain = toy.eval_task(name, "em", number=2)

        def examples():
            if interrupt:
                raise KeyboardInterrupt
            read.append(name)
            return plain.examples()

        return dataclasses.replace(plain, examples=examples)

    with pytest.raises(KeyboardInterrupt):
        toy.run(
            [task("b/1"), task("b/2"), task("b/3", interrupt=True), task("b/4")], tmp_path, config
        )
    assert read == ["b/1", "b/2"]
    assert rollup(tmp_path).cells[Key(0)].missing == (
        "b/3 at 0 shots: not evaluated yet",
        "b/4 at 0 shots: not evaluated yet",
    )
    toy.run([task(f"b/{i}") for i in (1, 2, 3, 4)], tmp_path, config)
    assert read == ["b/1", "b/2", "b/3", "b/4"]
    assert rollup(tmp_path).cells[Key(0)].missing == ()


def broken_examples():
    raise FileNotFoundError("no file task1.json")


def stale_examples():
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"examples": broken_examples}, "FileNotFoundError: no file task1.json"),
        ({"examples": stale_examples}, "OSError: .*Stale file handle"),
        ({"examples": list}, "no examples"),
        ({"examples": lambda: [toy.example("t", 0)]}, "example test0 has no options"),
        (
            {
                "examples": lambda: [
                    dataclasses.replace(toy.ranking_example("t", 0), references=("x",))
                ]
            },
            "example test0: none of its references is among its options",
        ),
        ({"metric_fns": [lambda targets, answers: {}]}, "arguments \\('targets', 'answers'\\)"),
    ],
)
def test_a_task_that_fails_is_reported_and_does_not_stop_the_others(tmp_path, change, reason):
    good = toy.eval_task("b/good", "acc_rank", number=1)
    bad = toy.eval_task("b/bad", "acc_rank", number=1)
    ((task, shots, why, may_pass),) = toy.run([dataclasses.replace(bad, **change), good], tmp_path)
    assert (task, shots, may_pass) == ("b/bad", 0, "Stale" in reason)
    assert re.search(reason, why)
    result = rollup(tmp_path)
    assert result.failures == {("b/bad", 0): why}
    assert result.cells[Key(0, "fully_held_out", "C", "b/good")].value is not None
    # Put right, it is evaluated at the next start.
    assert toy.run([bad, good], tmp_path) == []
    assert rollup(tmp_path).failures == {}


def test_without_demonstrations_a_few_shot_cell_fails_instead_of_repeating_zero_shot(tmp_path):
    task = dataclasses.replace(toy.eval_task(shots=(0, 2)), demonstrations=list)
    assert toy.run([task], tmp_path) == [("b/gen", 2, "no demonstrations for 2 shots", False)]


def test_long_prompts_lose_whole_demonstrations_first_and_then_their_left_end(tmp_path):
    def long(name, i, split="test"):
        filler = "red " * (200 if i == 1 else 4)
        return (
            toy.ranking_example(name, i, split)
            if split == "train"
            else dataclasses.replace(toy.ranking_example(name, i), input=filler + "dog")
        )

    task = toy.eval_task("b/long", "acc_rank", shots=(12,), number=2, make=long)
    assert toy.run([task], tmp_path) == []
    (short, cut), summary = RunFolder(tmp_path).read("b/long", 12)
    longest = len(ids(" blue seven"))
    assert cut.n_prompt_tokens == 128 - 1 - longest
    assert cut.demonstration_ids == ()
    assert cut.n_prompt_tokens_dropped > 0
    assert 0 < len(short.demonstration_ids) < 12
    assert short.n_prompt_tokens <= 128 - 1 - longest
    assert summary["effective_shots"] == {"mean": len(short.demonstration_ids) / 2, "min": 0}
    assert summary["num_truncated"] == 2


def test_a_generation_prompt_leaves_room_for_the_new_tokens(tmp_path):
    def long(name, i, split="test"):
        return toy.example(name, i, input="red " * 200)

    config = dataclasses.replace(toy.CONFIG, max_new_tokens=40)
    toy.run([toy.eval_task("b/long", make=long, number=1)], tmp_path, config)
    ((record,), _) = RunFolder(tmp_path).read("b/long", 0)
    assert record.n_prompt_tokens == 128 - 40 - 1


def test_options_that_differ_in_spaces_only_are_one_candidate(tmp_path):
    def doubled(name, i, split="test"):
        return toy.example(name, i, target="no", references=("no",), options=("no", " no", "yes"))

    toy.run([toy.eval_task("b/t", "acc_rank", make=doubled, number=1)], tmp_path)
    ((record,), _) = RunFolder(tmp_path).read("b/t", 0)
    assert [c.text for c in record.candidates] == ["no", "yes"]
    assert record.correct == (0,)


def test_a_subset_of_examples_is_the_same_in_every_order(tmp_path):
    config = dataclasses.replace(toy.CONFIG, max_examples=3)
    task = toy.eval_task("b/t", "em", number=8)
    backwards = dataclasses.replace(task, examples=lambda: task.examples()[::-1])
    chosen = []
    for i, t in enumerate((task, backwards)):
        toy.run([t], tmp_path / str(i), config)
        records, _ = RunFolder(tmp_path / str(i)).read("b/t", 0)
        chosen.append({r.example_id for r in records})
    assert chosen[0] == chosen[1]
    assert len(chosen[0]) == 3


def test_another_vocabulary_than_the_checkpoints_is_refused(tmp_path):
    metadata = {"vocabulary": {"spec": "opt:other", "fingerprint": "0123"}, "bos_id": 2}
    with pytest.raises(UserError, match="opt:other"):
        toy.run([toy.eval_task()], tmp_path, metadata=metadata)
    config, graphdef, params = toy.model()
    small = dataclasses.replace(config, vocab_size=8)
    with pytest.raises(UserError, match="8 rows"):
        evaluator.evaluate(
            [], graphdef, params, small, toy.vocabulary(), EvalConfig(), str(tmp_path)
        )
    assert not list(tmp_path.iterdir())


def test_records_of_another_checkpoint_or_prompt_are_not_continued(tmp_path):
    task = toy.eval_task(number=1)
    toy.run([task], tmp_path, metadata={"step": 10})
    with pytest.raises(UserError, match=r"the checkpoint.s step was 10 and is 20 now"):
        toy.run([task], tmp_path, metadata={"step": 20})
    with pytest.raises(UserError, match=r"PromptConfig\.separator\) was"):
        toy.run([task], tmp_path, metadata={"step": 10}, prompts=PromptConfig(separator="##"))


def test_two_metric_functions_must_not_share_a_key(finished):
    records, _ = finished.read("b/gen", 0)
    with pytest.raises(UserError, match="two metric functions"):
        call_metric_fns(toy.eval_task().metric_fns * 2, records, "sum")


def test_an_answer_ends_before_its_stop_string(finished, tmp_path):
    whole, _ = finished.read("b/gen", 0)
    longest = max((r.prediction for r in whole), key=len)
    stop = longest[len(longest) // 2]
    toy.run([toy.eval_task("b/gen", "rougeL", protocol=Protocol(stop=(stop,)))], tmp_path)
    records, summary = RunFolder(tmp_path).read("b/gen", 0)
    for record, before in zip(records, whole, strict=True):
        assert record.prediction == before.prediction.split(stop)[0].strip()
        assert record.finished or stop not in before.prediction
    assert summary["protocol"]["stop"] == [stop]


def test_samples_are_kept_and_the_majority_counts(tmp_path):
    protocol = Protocol(samples=5, temperature=0.7)
    toy.run([toy.eval_task("b/gen", "em", protocol=protocol)], tmp_path / "a")
    records, _ = RunFolder(tmp_path / "a").read("b/gen", 0)
    assert any(len(set(r.samples)) > 1 for r in records)
    for record in records:
        assert len(record.samples) == 5
        votes = collections.Counter(s for s in record.samples if s)
        assert not votes or votes[record.prediction] == max(votes.values())
    toy.run(
        [toy.eval_task("b/gen", "em", protocol=protocol)],
        tmp_path / "b",
        dataclasses.replace(toy.CONFIG, tokens_per_batch=256),
    )
    again, _ = RunFolder(tmp_path / "b").read("b/gen", 0)
    assert [r.samples for r in again] == [r.samples for r in records]


def test_partial_scores_are_those_of_the_text_behind_each_context(tmp_path):
    contexts = ("the red cat and the cat", "the red cat and the dog")

    def schema(task, i, split="test"):
        return toy.example(
            task,
            i,
            split,
            contexts=contexts,
            target="seven",
            options=("the cat", "the dog"),
            references=("the dog",),
        )

    toy.run([toy.eval_task("b/schema", "acc_rank", make=schema, number=1)], tmp_path)
    ((record,), _) = RunFolder(tmp_path).read("b/schema", 0)
    config, graphdef, params = toy.model()
    items = [
        ScoreItem(ids(f"Instructions: Say it.\nInput: {c}\nOutput:"), [ids(" seven")])
        for c in contexts
    ]
    expected = [s[0].sum_logprob for s in score(Engine(graphdef, params, config), items)]
    assert [c.sum_logprob for c in record.candidates] == pytest.approx(expected, abs=1e-4)
    assert record.prediction == ("the cat", "the dog")[int(np.argmax(expected))]
    assert record.score == float(record.prediction == "the dog")


@pytest.mark.parametrize("shots", [0, 2])
def test_a_task_whose_examples_changed_is_evaluated_again(tmp_path, caplog, shots):
    """Also where it is the pool of demonstrations; but not where the same is read elsewhere."""
    file = tmp_path / "upstream.jsonl"
    file.write_text("as it was")
    task = toy.eval_task("b/t", "em", shots=(shots,))
    pool = task.demonstrations()

    def run(reader="r", most=None, level="task", **changes):
        origin = Origin(reader, (str(file),), most, level)
        assert not toy.run([dataclasses.replace(task, origin=origin, **changes)], tmp_path / "out")
        ours = [r for r in caplog.records if "is evaluated again" in r.getMessage()]
        caplog.clear()
        (path,) = (tmp_path / "out" / "records").glob("*.jsonl")
        return bool(ours), len(path.read_text().splitlines()) - 1

    other = task.examples()[1:]
    assert run() == (False, 5)
    assert run(examples=lambda: 1 / 0) == (False, 5)  # nothing is read: the file is the same
    file.write_text("as it is elsewhere")
    assert run() == run(examples=lambda: 1 / 0) == (False, 5)  # it is read once
    assert run() == run(reader="another setting") == (False, 5)
    assert run(reader="s", demonstrations=lambda: pool[1:]) == (bool(shots), 5)
    assert run(reader="t", examples=lambda: other) == (True, 4)
    assert run(reader="t", examples=lambda: other, most=250) == (False, 4)
    assert run(reader="t", most=250) == (True, 5)
    assert run(reader="t", most=250, level="instance", instruction_level="instance") == (True, 5)


def test_records_of_examples_that_cannot_be_read_now_do_not_count(tmp_path):
    """A mistake in a task's file after an evaluation is an error, as before one."""
    task = toy.eval_task("b/t", "em")

    def run(reader, **changes):
        now = dataclasses.replace(task, origin=Origin(reader, ()), **changes)
        failed = toy.run([now], tmp_path)
        return [failure.reason for failure in failed], dict(rollup(tmp_path).failures)

    def misspelt():
        raise UserError("no usable row")

    assert run("r") == ([], {})
    (path,) = (tmp_path / "records").glob("*.jsonl")
    written = path.stat().st_mtime_ns
    reasons, holes = run("s", examples=misspelt)
    assert holes == {("b/t", 0): reasons[0]}
    assert reasons[0].startswith("no usable row; its earlier records are kept, and")
    assert run("r") == ([], {})  # put right: nothing is evaluated again
    assert path.stat().st_mtime_ns == written
