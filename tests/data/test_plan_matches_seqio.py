"""The live SeqIO pipeline and the plan make the same model features of the same examples."""

import numpy as np
import pytest

seqio = pytest.importorskip("seqio")
import tensorflow as tf  # noqa: E402 - only where SeqIO is

from optiml_jax.data.loader import read_rows  # noqa: E402
from optiml_jax.data.plan import PlanConfig, build_plan  # noqa: E402

LENGTH = 128
OURS_TO_SEQIO = {
    "tokens": "decoder_input_tokens",
    "targets": "decoder_target_tokens",
    "segment_ids": "decoder_segment_ids",
    "positions": "decoder_positions",
    "loss_weights": "decoder_loss_weights",
}


def register(name, examples):
    """A SeqIO task that yields token ids; EOS is in the targets already."""

    def dataset(split, shuffle_files, seed=None):
        types = {"inputs": tf.int32, "targets": tf.int32}
        shapes = {"inputs": (None,), "targets": (None,)}
        features = [{"inputs": list(s), "targets": list(t)} for s, t in examples]
        return tf.data.Dataset.from_generator(
            lambda: iter(features),
            output_signature={k: tf.TensorSpec(shapes[k], types[k]) for k in types},
        )

    vocabulary = seqio.PassThroughVocabulary(50272)
    seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(
            dataset, splits=["train"], num_input_examples={"train": len(examples)}
        ),
        preprocessors=[],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=False, required=False),
            "targets": seqio.Feature(vocabulary, add_eos=False),
        },
    )


def live_rows(task):
    """The packed rows of one epoch of a task, under the plan's names."""
    dataset = seqio.get_dataset(
        task,
        # The converter joins both features, so a row has the sum of their lengths.
        task_feature_lengths={"inputs": LENGTH // 2, "targets": LENGTH // 2},
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=seqio.PrefixLMFeatureConverter(
            pack=True, loss_on_targets_only=True, bos_id=2
        ),
    )
    return [
        {ours: row[theirs] for ours, theirs in OURS_TO_SEQIO.items()}
        for row in dataset.as_numpy_iterator()
    ]


def segments(rows):
    """All segments of packed rows, sorted: (tokens, targets, positions, loss weights) of each."""
    found = []
    for row in rows:
        ids = row["segment_ids"]
        # Segments stand side by side, are counted from 1, and the rest of the row is empty.
        used = np.count_nonzero(ids)
        assert (np.diff(ids[:used]) >= 0).all()
        assert not ids[used:].any()
        assert set(ids[:used]) == set(range(1, ids.max() + 1))
        for number in range(1, ids.max() + 1):
            here = ids == number
            names = ("tokens", "targets", "positions", "loss_weights")
            found.append(tuple(tuple(row[name][here].tolist()) for name in names))
        empty = ids == 0
        assert not row["loss_weights"][empty].any()
    return sorted(found)


def test_plan_and_live_seqio_give_the_same_features(make_cache, random_examples, tmp_path):
    tasks = {"one/a": random_examples(0, 25), "two/b": random_examples(1, 12)}
    tasks["one/a"][3] = ([], [31, 32, 33, 2])  # plain text: loss everywhere
    tasks["two/b"][0] = ([17], [2])  # nothing to say but the end
    for name, examples in tasks.items():
        register(f"same_{name.replace('/', '_')}", examples)
    live = segments([*live_rows("same_one_a"), *live_rows("same_two_b")])

    # Enough rows for every example to come up; each counts once.
    config = PlanConfig(num_rows=120, sequence_length=LENGTH, lookahead=16)
    rates = {name: len(examples) for name, examples in tasks.items()}
    plan = build_plan(make_cache(tasks), list(tasks), rates, "train", config, tmp_path / "plan")
    batch = read_rows(plan, range(plan.num_rows))
    planned = segments([{key: batch[key][r] for key in batch} for r in range(plan.num_rows)])

    assert len(live) == 25 + 12
    assert sorted(set(planned)) == live
