"""Plans: packing, draws, the prefix property, and what a plan depends on."""

import collections
import json

import gin
import numpy as np
import pytest

from optiml_jax.data import checked_array, draws
from optiml_jax.data.loader import read_rows
from optiml_jax.data.mixture import Mixture
from optiml_jax.data.packing import LookaheadPacker
from optiml_jax.data.plan import Plan, PlanConfig, build_plan, plan_mixture
from optiml_jax.errors import UserError

TASKS = ["one/a", "one/b", "two/c"]
RATES = {"one/a": 0.5, "one/b": 0.2, "two/c": 0.3}


def config(num_rows=200, **overrides):
    return PlanConfig(**({"num_rows": num_rows, "sequence_length": 128, "seed": 3} | overrides))


def same_rows(plan, other, rows):
    """Whether the first `rows` rows of two plans are the same, bit for bit."""
    end = plan.row_offsets[rows]
    return (
        np.array_equal(plan.row_offsets[: rows + 1], other.row_offsets[: rows + 1])
        and np.array_equal(plan.entry_tasks[:end], other.entry_tasks[:end])
        and np.array_equal(plan.entry_examples[:end], other.entry_examples[:end])
    )


# --- packing


def lognormal_lengths(number, sigma, mean=293, longest=2048):
    drawn = np.random.default_rng(1).lognormal(np.log(mean) - sigma**2 / 2, sigma, number)
    return np.clip(drawn, 4, longest).astype(int)


def packed_rows(lengths, capacity=2048, lookahead=256, piece=1000):
    """The rows (lists of item numbers) after adding `lengths` in pieces."""
    packer = LookaheadPacker(capacity, lookahead)
    for i in range(0, len(lengths), piece):
        packer.add([int(n) for n in lengths[i : i + piece]])
    return [row.tolist() for row in np.split(np.array(packer.items), packer.row_ends)[:-1]]


@pytest.mark.parametrize("sigma", [0.4, 0.7, 1.0, 1.3])
def test_packing_fills_99_9_percent_of_the_slots_on_lognormal_lengths(sigma):
    lengths = lognormal_lengths(30_000, sigma)
    filled = np.array([lengths[row].sum() for row in packed_rows(lengths)])
    assert filled.max() <= 2048
    assert filled.mean() / 2048 >= 0.999


@pytest.mark.parametrize("lookahead", [1, 2, 50])
@pytest.mark.parametrize("longest", [3, 60, 100])
def test_packing_places_every_item_once_and_keeps_at_most_the_lookahead_back(lookahead, longest):
    lengths = np.random.default_rng(0).integers(1, longest + 1, 3000)
    rows = packed_rows(lengths, capacity=100, lookahead=lookahead)
    items = [item for row in rows for item in row]
    assert len(set(items)) == len(items) >= 3000 - lookahead
    assert all(row and lengths[row].sum() <= 100 for row in rows)


def test_packing_is_the_same_in_pieces_and_more_items_only_append_rows():
    lengths = lognormal_lengths(5000, 1.0)
    rows = packed_rows(lengths)
    assert packed_rows(lengths, piece=7) == rows
    fewer = packed_rows(lengths[:3000])
    assert fewer == rows[: len(fewer)]


def test_items_do_not_wait_long():
    """The order of the draws, and so of the epochs, is nearly kept."""
    lengths = lognormal_lengths(30_000, 1.0)
    assert max(max(row) - min(row) for row in packed_rows(lengths)) < 2 * 256


def test_a_row_is_finished_by_a_single_item_or_pair_that_fills_it_exactly():
    # 60 is the oldest; 40 misses: 40 itself, 15 + 25, but not 20 with itself.
    assert packed_rows([60, 39, 40, 1], capacity=100, lookahead=4) == [[0, 2]]
    assert sorted(packed_rows([60, 39, 15, 25], capacity=100, lookahead=4)[0]) == [0, 2, 3]
    assert packed_rows([60, 20, 17, 16], capacity=100, lookahead=4) == [[0, 1, 2]]
    assert packed_rows([60, 20, 20, 39], capacity=100, lookahead=4) == [[0, 1, 2]]


def test_neighbouring_rows_are_not_alike():
    """Why rows are not shuffled after packing: batches are as even as of rows drawn at random."""
    sizes = np.array([len(row) for row in packed_rows(lognormal_lengths(60_000, 1.0))])
    centred = sizes - sizes.mean()
    for lag in (1, 2, 8, 32, 128):
        assert (centred[:-lag] * centred[lag:]).mean() / sizes.var() < 0.05
    batches = sizes[: len(sizes) // 64 * 64].reshape(-1, 64).mean(axis=1)
    assert batches.var() * 64 / sizes.var() < 1.4  # 1: as if rows were drawn at random


# --- draws


def first_draws(rates, pools, seed=5, blocks=2, names=None):
    names = names or [f"t{i}" for i in range(len(pools))]
    stream = draws.draw_examples(names, pools, rates, seed)
    tasks, examples = zip(*(next(stream) for _ in range(blocks)), strict=True)
    return np.concatenate(tasks), np.concatenate(examples)


def test_every_epoch_of_a_task_holds_each_example_once_in_another_order():
    pools = [np.arange(37), np.array([5, 9, 11])]
    tasks, examples = first_draws([0.8, 0.2], pools)
    for task, pool in enumerate(pools):
        order = examples[tasks == task]
        epochs = order[: len(order) // len(pool) * len(pool)].reshape(-1, len(pool))
        assert (np.sort(epochs, axis=1) == pool).all()
        assert len({tuple(epoch) for epoch in epochs[:6]}) > 1


def test_draws_follow_the_rates_and_never_take_a_task_of_rate_0():
    rates = [0.0, 0.5, 0.0, 0.3, 0.2, 0.0]
    tasks, _ = first_draws(rates, [np.arange(10)] * 6, blocks=4)
    shares = np.bincount(tasks, minlength=6) / len(tasks)
    assert shares == pytest.approx(rates, abs=0.01)
    assert (shares[[0, 2, 5]] == 0).all()


def test_a_tasks_order_depends_on_its_name_and_the_seed_alone():
    pools = [np.arange(50)] * 2
    tasks, examples = first_draws([1, 1], pools, names=["x", "y"])
    others, other_examples = first_draws([1, 5, 1], [*pools, np.arange(50)], names=["w", "y", "x"])
    np.testing.assert_array_equal(examples[tasks == 0][:500], other_examples[others == 2][:500])
    assert not np.array_equal(examples[tasks == 0][:500], examples[tasks == 1][:500])
    again, again_examples = first_draws([1, 1], pools, names=["x", "y"], seed=6)
    assert not np.array_equal(examples[tasks == 0][:500], again_examples[again == 0][:500])


def test_a_smaller_subset_is_part_of_a_larger_one():
    small, large = (draws.random_subset(1000, n, 7, "t") for n in (100, 300))
    assert len(small) == 100
    assert len(np.unique(large)) == 300
    assert set(small) < set(large)
    assert set(small) != set(draws.random_subset(1000, 100, 8, "t"))
    np.testing.assert_array_equal(draws.random_subset(5, 100, 7, "t"), range(5))


# --- plans


def test_a_longer_plan_has_the_shorter_one_as_its_prefix(cache, tmp_path):
    short = build_plan(cache, TASKS, RATES, "train", config(37), tmp_path / "short")
    # Longer than one block of draws: 16,384 draws of about 35 tokens fill some 4,600 rows.
    long = build_plan(cache, TASKS, RATES, "train", config(9000), tmp_path / "long")
    assert (short.num_rows, long.num_rows) == (37, 9000)
    assert len(long.entry_tasks) > draws.DRAWS_PER_BLOCK
    assert same_rows(short, long, 37)
    assert short.fingerprint == long.fingerprint


def test_rows_fit_and_use_all_examples_of_a_task_equally_often(cache, tmp_path):
    chosen = config(300, lookahead=16)
    plan = build_plan(cache, TASKS, RATES, "train", chosen, tmp_path / "plan")
    lengths = {t.name: t.lengths("train").sum(axis=1) for t in plan.cached_tasks}
    for row in range(plan.num_rows):
        assert 0 < sum(lengths[task][example] for task, example in plan.row(row)) <= 128
    for task, count in (("one/a", 40), ("one/b", 15), ("two/c", 7)):
        used = collections.Counter(e for r in range(300) for t, e in plan.row(r) if t == task)
        assert len(used) == count
        # Exact epochs but for the begun one and the 16 draws that wait at the end.
        assert max(used.values()) - min(used.values()) <= 3


def test_the_same_inputs_give_the_same_files_and_a_seed_gives_others(cache, tmp_path):
    plan = build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "1")
    build_plan(cache, TASKS[::-1], RATES, "train", config(), tmp_path / "2")
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
    other = build_plan(cache, TASKS, RATES, "train", config(seed=4), tmp_path / "3")
    assert not same_rows(plan, other, 10)


def test_the_fingerprint_covers_everything_the_rows_depend_on(cache, tmp_path, make_cache):
    def fingerprint(rates=RATES, caps=None, row_shares=None, **overrides):
        settings = {"max_examples": caps, "row_shares": row_shares}
        chosen = config(20, **overrides)
        return build_plan(
            cache, TASKS, rates, "train", chosen, tmp_path / "p", **settings
        ).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    seen = {
        first,
        fingerprint(rates=RATES | {"two/c": 0.4}),
        fingerprint(caps={"one/a": 10}),
        fingerprint(row_shares={"two": 0.3}),
        fingerprint(row_shares={"two": 0.4}),
        fingerprint(seed=4),
        fingerprint(bos_id=0),
        fingerprint(sequence_length=100),
        fingerprint(lookahead=32),
    }
    make_cache({"two/c": [([7], [8, 2])] * 3})
    seen.add(fingerprint())
    assert len(seen) == 10


def test_the_cap_on_examples_draws_from_a_subset(cache, tmp_path):
    mixture = Mixture(name="m", max_examples=10, seed=1)
    plan = plan_mixture(cache, TASKS, mixture, "train", config(300), tmp_path / "plan")
    used = collections.defaultdict(set)
    for row in range(300):
        for task, example in plan.row(row):
            used[task].add(example)
    assert {task: len(examples) for task, examples in used.items()} == {
        "one/a": 10,
        "one/b": 10,
        "two/c": 7,
    }
    assert used["one/a"] != set(range(10))
    other = Mixture(name="m", max_examples=10, seed=2)
    plan = plan_mixture(cache, TASKS, other, "train", config(300), tmp_path / "plan")
    assert {e for r in range(300) for t, e in plan.row(r) if t == "one/a"} != used["one/a"]


def test_the_summary_counts_what_was_planned(cache, tmp_path):
    plan = build_plan(cache, TASKS, RATES, "train", config(500), tmp_path / "plan")
    lengths = {t.name: t.lengths("train") for t in plan.cached_tasks}
    entries = [entry for row in range(500) for entry in plan.row(row)]
    tokens = sum(int(lengths[t][e].sum()) for t, e in entries)
    summary = plan.summary
    assert (summary["rows"], summary["examples"], summary["tokens"]) == (500, len(entries), tokens)
    assert summary["loss_tokens"] == sum(int(lengths[t][e][1]) for t, e in entries)
    assert summary["fill"] == pytest.approx(tokens / (500 * 128))
    one = summary["benchmarks"]["one"]
    assert one["examples"] == sum(t.startswith("one/") for t, _ in entries)
    assert one["rate"] == pytest.approx(0.7)
    assert one["share"] == pytest.approx(0.7, abs=0.05)
    assert sum(b["token_share"] for b in summary["benchmarks"].values()) == pytest.approx(1)
    epochs = [sum(t == task for t, _ in entries) / len(lengths[task]) for task in TASKS]
    assert summary["epochs"]["max"] == pytest.approx(max(epochs))
    assert summary["epochs"]["median"] == pytest.approx(np.median(epochs))
    planned = {row["task"]: row["planned_examples"] for row in plan.meta["tasks"]}
    assert planned == collections.Counter(task for task, _ in entries)


def test_a_task_without_examples_is_reported_and_not_drawn(cache, make_cache, tmp_path, caplog):
    make_cache({"two/empty": []})
    tasks = [*TASKS, "two/empty"]
    plan = plan_mixture(cache, tasks, Mixture(name="m"), "train", config(), tmp_path / "plan")
    assert plan.summary["tasks_without_examples"] == ["two/empty"]
    assert "1 tasks_without_examples: two/empty" in caplog.text
    with pytest.raises(UserError, match="'two/empty' has a mixing rate but no example in split"):
        build_plan(cache, tasks, RATES | {"two/empty": 1}, "train", config(), tmp_path / "plan")


# --- what goes wrong


def test_planning_what_is_not_there_is_an_error(cache, make_cache, tmp_path, random_examples):
    def plan(tasks=TASKS, rates=RATES, split="train", chosen=None):
        build_plan(cache, tasks, rates, split, chosen or config(), tmp_path / "plan")

    with pytest.raises(UserError, match="'one/x'"):
        plan(tasks=["one/x"])
    with pytest.raises(UserError, match="'one/a' has no split 'valid'"):
        plan(split="valid")
    with pytest.raises(UserError, match="'two/c' is to be planned but has no mixing rate"):
        plan(rates={"one/a": 1, "one/b": 1})
    with pytest.raises(UserError, match="no task has a mixing rate above 0"):
        plan(rates=dict.fromkeys(TASKS, 0))
    with pytest.raises(UserError, match=r"task 'one/a' holds an example of \d+ tokens"):
        plan(chosen=config(sequence_length=32))
    other = {"spec": "opt:other", "fingerprint": "v2", "padded_size": 50272}
    make_cache({"two/c": random_examples(2, 5)}, vocabulary=other)
    with pytest.raises(UserError, match=r"'one/a' and 'two/c'.*different vocabularies.*opt:other"):
        plan()
    assert not (tmp_path / "plan").exists()


def test_a_plan_refuses_a_task_that_was_cached_anew(cache, make_cache, tmp_path):
    build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")
    make_cache({"one/b": [([7], [8, 2])] * 15})
    with pytest.raises(UserError, match=r"task one/b was cached again.*`optiml plan` again"):
        _ = Plan.load(tmp_path / "plan").cached_tasks


@pytest.mark.parametrize("name", ["row_offsets.npy", "entry_tasks.npy", "entry_examples.npy"])
def test_a_damaged_plan_is_an_error(cache, tmp_path, name):
    build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")
    path = tmp_path / "plan" / name
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"is damaged .*`optiml plan` again"):
        Plan.load(tmp_path / "plan")
    path.unlink()
    with pytest.raises(UserError, match="is damaged"):
        Plan.load(tmp_path / "plan")


@pytest.mark.parametrize("name", ["row_offsets", "entry_tasks", "entry_examples"])
def test_no_bit_of_a_plan_can_flip_unnoticed(cache, tmp_path, name):
    build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")
    path, rng = tmp_path / "plan" / f"{name}.npy", np.random.default_rng(1)
    data = path.read_bytes()
    for bit in rng.integers(0, 8 * len(data), 60):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(UserError, match=r"is damaged .*`optiml plan` again"):
            np.asarray(getattr(Plan.load(tmp_path / "plan"), name))


def test_only_what_is_used_of_a_plan_is_read(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(checked_array, "_BLOCK_BYTES", 64)
    build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")
    path = tmp_path / "plan" / "entry_tasks.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    plan = Plan.load(tmp_path / "plan")
    assert read_rows(plan, [0, 1])["tokens"].shape[0] == 2
    with pytest.raises(UserError, match="is damaged"):
        read_rows(plan, [plan.num_rows - 1])


def test_settings_of_a_plan_that_were_changed_are_refused(cache, tmp_path):
    build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    file.write_text(file.read_text().replace('"pad_id": 1', '"pad_id": 3'))
    with pytest.raises(UserError, match=r"not as it was written; run `optiml plan` again"):
        Plan.load(tmp_path / "plan")


def test_an_interrupted_plan_is_no_plan(cache, tmp_path, monkeypatch):
    build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match="no space left"):
        build_plan(cache, TASKS, RATES, "train", config(300), tmp_path / "plan")
    with pytest.raises(UserError, match="no finished plan in"):
        Plan.load(tmp_path / "plan")


def test_a_plan_of_another_format_is_refused(cache, tmp_path):
    plan = build_plan(cache, TASKS, RATES, "train", config(), tmp_path / "plan")
    (tmp_path / "plan" / "plan.json").write_text(json.dumps(plan.meta | {"format": 0}))
    with pytest.raises(UserError, match="has format 0"):
        Plan.load(tmp_path / "plan")


def test_the_config_is_read_from_gin_and_checked():
    gin.parse_config("PlanConfig.num_rows = 12\nPlanConfig.sequence_length = 64")
    assert (PlanConfig().num_rows, PlanConfig().sequence_length) == (12, 64)
    with pytest.raises(UserError, match=r"num_rows = 0 \(int\) must be a whole number"):
        PlanConfig(num_rows=0)
