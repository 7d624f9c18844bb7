import json
import logging
import pickle
import re

import pytest
import yaml
from promptsource_bench import template, write_rows, write_templates

from optiml_jax.data.example import Drops
from optiml_jax.data.prepare import prepare
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.store import Store
from optiml_jax.data.vocabulary import train_sentencepiece
from optiml_jax.errors import UserError
from tasks import taxonomy
from tasks.promptsource import reader as promptsource
from tasks.registry import find_sources
from tasks.splits import Manifest

MANIFEST = Manifest.load()
PARITY = [
    template("Is {{n}} even? ||| {{answer_choices[label]}}", "yes ||| no", name="is"),
    template("{{n}} is odd, isn't it? ||| {{answer_choices[1 - label]}}", "yes ||| no", name="odd"),
    template("Say {{n}} in words: ||| {{words}}", "one ||| two", name="words"),
]
INVERTED = template("Give a number: ||| {{n}}", original_task=False, name="inverted")


def parity_rows(n, start=0):
    return [{"n": i, "label": i % 2, "words": f"number {i}"} for i in range(start, start + n)]


@pytest.fixture
def bench(tmp_path):
    """`bench({dataset: (templates, {split: rows})})`: the folder for Run.data."""

    def write(content):
        for dataset, (templates, splits) in content.items():
            write_templates(tmp_path / "templates", dataset, templates)
            if splits:
                write_rows(tmp_path / "datasets", dataset, **splits)
        return tmp_path

    return write


@pytest.fixture
def manifest_of(tmp_path):
    def load(**fields) -> Manifest:
        row = {"tasks": "promptsource/*", "level": "fully_held_out", "role": ["test"]}
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump({"rows": [{**row, "src": "inferred", **fields}]}))
        return Manifest.load(path)

    return load


def find(root, manifest=MANIFEST):
    return {
        s.name.removeprefix("promptsource/"): s for s in promptsource.find_tasks(root, manifest)
    }


def read(source, split):
    drops = Drops()
    return list(source.read(split, drops)), dict(drops)


# --- which tasks there are


def test_a_data_set_with_templates_and_rows_is_a_task(bench, caplog):
    root = bench(
        {
            "numbers": ([*PARITY, INVERTED], {"train": parity_rows(20)}),
            "group/sub": (PARITY, {"train": parity_rows(20), "validation": parity_rows(5)}),
            "absent": (PARITY, None),
            "turned": ([INVERTED], {"train": parity_rows(20)}),
            "unlearnable": (PARITY, {"test": parity_rows(20)}),
        }
    )
    sources = find(root)
    assert list(sources) == ["group/sub", "numbers", "unlearnable"]
    assert sources["numbers"].instruction_level == "instance"
    assert sources["numbers"].splits == ("train", "validation")
    assert sources["numbers"].settings["category"] == "Misc."
    log = [r.getMessage() for r in caplog.records]
    assert any(x.startswith("1 of 5 promptsource data sets have no rows in") for x in log)
    assert "1 of 5 promptsource data sets have no template of the original task: turned" in log
    assert "1 of 5 promptsource data sets have no training rows: unlearnable" in log
    assert any(x.endswith("count as Misc.: group/sub, numbers, unlearnable") for x in log)


def test_the_rows_may_lie_beside_the_folder_and_templates_in_a_clone(bench, tmp_path):
    root = bench({"numbers": (PARITY, {"train": parity_rows(20)})})
    clone = tmp_path / "clone"
    (clone / "promptsource").mkdir(parents=True)
    (root / "templates").rename(clone / "promptsource" / "templates")
    assert list(find(clone)) == ["numbers"]


def test_nothing_to_read_is_one_line(bench, tmp_path):
    with pytest.raises(UserError, match=r"folder not found: .*nowhere/templates"):
        find(tmp_path / "nowhere")
    root = bench({"numbers": (PARITY, None)})
    with pytest.raises(UserError, match=r"folder not found: .*/datasets"):
        find(root)
    (root / "datasets").mkdir()
    with pytest.raises(UserError, match=r"none of the 1 data sets of .* has rows in"):
        find(root)


def test_rounds_become_tasks_of_their_own(bench):
    nli = [template("{{n}}? ||| {{answer_choices[label]}}", "yes ||| no")]
    splits = {
        f"{split}_r{k}": parity_rows(20, start=100 * k)
        for split in ("train", "dev", "test")
        for k in (1, 2, 3)
    }
    sources = find(bench({"anli": (nli, splits)}))
    assert list(sources) == ["anli/r1", "anli/r2", "anli/r3"]
    examples, _ = read(sources["anli/r2"], "test")
    assert {e.input for e in examples} == {f"{n}?" for n in range(200, 220)}
    assert sources["anli/r2"].settings["category"] == "Textual Entailment"
    assert MANIFEST.row(sources["anli/r2"]).role == ("test",)


def test_templates_of_the_list_are_used_though_not_of_the_original_task(bench):
    named = [{**INVERTED, "name": name} for name in ("stereotype", "anti_stereotype")]
    named[1] = {**named[1], "id": "other"}
    sources = find(bench({"crows_pairs": (named, {"test": parity_rows(20)})}))
    assert sources["crows_pairs"].settings["prompts"] == (named[0]["id"],)


def test_all_templates_are_used_where_the_manifest_says_so(bench, manifest_of):
    root = bench({"anything": ([INVERTED], {"train": parity_rows(20)})})
    rows = manifest_of(level="train_only", role=["train"], prompts="all")
    assert find(root, rows)["anything"].settings["prompts"] == (INVERTED["id"],)


def test_every_upstream_data_set_has_one_category_and_the_lists_name_real_ones(real_data):
    root = real_data / "promptsource" / "templates"
    names = [p.parent.relative_to(root).as_posix() for p in root.rglob("templates.yaml")]
    misc = [n for n in names if taxonomy.category("promptsource", n) == taxonomy.MISC]
    assert misc == ["cbt/raw"]
    for dataset, wanted in promptsource._read_facts()["also_used"].items():
        templates = promptsource.read_templates(root / dataset / "templates.yaml")
        assert set(wanted) <= {t.name for t in templates}


def test_no_training_task_has_a_category_that_is_held_out(real_data, tmp_path):
    root = real_data / "promptsource" / "templates"
    for path in root.rglob("templates.yaml"):
        folder = tmp_path / "datasets" / path.parent.relative_to(root)
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").touch()
    (tmp_path / "templates").symlink_to(root)
    sources = promptsource.find_tasks(tmp_path, MANIFEST)
    assert len(sources) == 264
    MANIFEST.check_held_out(sources)


# --- what is read


def test_training_draws_as_many_items_as_there_are_rows(bench):
    source = find(bench({"numbers": (PARITY, {"train": parity_rows(300)})}))["numbers"]
    train, drops = read(source, "train")
    validation, _ = read(source, "validation")
    assert (len(train), drops) == (270, {})
    assert len(validation) == 90  # 30 rows with 3 prompts each are fewer than 250
    assert {e.example_id for e in train}.isdisjoint(e.example_id for e in validation)
    counts = [sum(e.prompt_id == t["id"] for e in train) for t in PARITY]
    assert min(counts) > 60
    assert read(source, "train")[0] == train
    assert list(pickle.loads(pickle.dumps(source)).read("train", Drops())) == train


def test_tests_have_every_row_with_every_prompt(bench, manifest_of):
    root = bench({"numbers": (PARITY, {"train": parity_rows(9), "validation": parity_rows(40)})})
    source = find(root, manifest_of())["numbers"]
    assert source.splits == ("train", "test")
    assert len(read(source, "test")[0]) == 120
    assert [len(s.demonstrations()) for s in (source,)] == [9]
    source = find(root, manifest_of(role=["dev"]))["numbers"]
    assert len(read(source, "test")[0]) == 120
    source = find(root, manifest_of(instances="first7"))["numbers"]
    assert len(read(source, "test")[0]) == 21


def test_validation_tasks_are_a_draw_from_the_pool(bench, manifest_of):
    root = bench({"numbers": (PARITY, {"validation": parity_rows(100)})})
    source = find(root, manifest_of(role=["dev"]))["numbers"]
    assert source.splits == ("test",)
    assert source.demonstrations() == []
    assert len(read(source, "test")[0]) == 250


def test_rows_of_a_hidden_test_split_are_not_scored(bench):
    splits = {"train": parity_rows(9), "validation": parity_rows(4), "test": parity_rows(5)}
    source = find(bench({"super_glue/wic": (PARITY[:1], splits)}))["super_glue/wic"]
    assert [e.example_id for e in read(source, "test")[0]] != []
    assert len(read(source, "test")[0]) == 4


def test_an_example_carries_options_only_if_its_target_is_one(bench, caplog):
    caplog.set_level(logging.INFO)
    source = find(bench({"numbers": (PARITY, {"train": parity_rows(60)})}))["numbers"]
    examples, _ = read(source, "train")
    by_prompt = {e.meta["template"]: e for e in examples}
    assert by_prompt["is"].options == ("yes", "no")
    assert by_prompt["is"].target in ("yes", "no")
    assert by_prompt["words"].options is None
    assert by_prompt["words"].references == (by_prompt["words"].target,)
    logged = [r.getMessage() for r in caplog.records if "not among its options" in r.getMessage()]
    assert len(logged) == 1
    assert PARITY[2]["id"] in logged[0]


def test_ranked_tasks_keep_only_what_can_be_ranked(bench, manifest_of):
    root = bench({"numbers": (PARITY, {"test": parity_rows(10)})})
    examples, drops = read(find(root, manifest_of(metric="acc_rank"))["numbers"], "test")
    assert len(examples) == 20
    assert drops == {"target is not among the options to rank": 10}


def test_a_prompt_that_does_not_apply_gives_way_to_another(bench):
    halves = [
        template(
            f"{{% if label == {k} %}}Half {k}: {{{{n}}}} ||| {{{{n}}}}{{% endif %}}", name=f"h{k}"
        )
        for k in (0, 1)
    ]
    splits = {"train": parity_rows(200), "validation": parity_rows(20)}
    source = find(bench({"numbers": (halves, splits)}))["numbers"]
    examples, drops = read(source, "train")
    assert all(e.input.startswith(f"Half {int(e.target) % 2}: ") for e in examples)
    assert 100 < len(examples) <= 200
    assert drops["template does not apply to the row"] > 20


def test_what_is_left_out_is_counted_by_reason(bench, manifest_of):
    rows = [
        {"n": "fine", "label": 0},
        {"n": "no gold", "label": -1},
        {"n": "", "label": 0},
        {"n": "a\0b", "label": 0},
        {"n": "x", "label": 7},
        {"n": "y", "label": 2},
        {"n": ["list"], "label": 0},
        {"n": None, "label": 0},
        {"n": float("nan"), "label": 0},
        {"n": {"a": 1}, "label": 0},
    ]
    prompt = template("{{n}} ||| {{ (answer_choices[label] if label < 9) }}", "a ||| b |||")
    source = find(bench({"numbers": ([prompt], {"test": rows})}), manifest_of())["numbers"]
    examples, drops = read(source, "test")
    assert [(e.input, e.target, e.options) for e in examples] == [("fine", "a", ("a", "b"))]
    assert drops == {
        "no label (-1)": 1,
        "empty input": 1,
        "NUL or U+FFFD": 1,
        "empty target": 2,
        "template failed on the row": 4,
    }


def test_three_parts_are_an_error_with_the_templates_id(bench):
    bad = template("{{n}} ||| b ||| c")
    source = find(bench({"numbers": ([bad], {"train": parity_rows(20)})}))["numbers"]
    with pytest.raises(UserError, match="renders 3 parts") as e:
        read(source, "train")
    assert bad["id"] in str(e.value)


def test_columns_with_a_hyphen_and_line_ends_of_windows(bench, manifest_of):
    prompt = template("{{my_text}} ||| {{t}}")
    rows = [{"my-text": "a\r\nb", "t": "c"}]
    source = find(bench({"numbers": ([prompt], {"test": rows})}), manifest_of())["numbers"]
    assert read(source, "test")[0][0].input == "a\nb"


def test_ids_are_upstreams_within_the_split_or_a_hash(bench, manifest_of):
    rows = [{"id": "q7", "n": 1}, {"idx": 3, "n": 2}, {"idx": {"a": 1}, "n": 3}]
    prompt = template("{{n}} ||| x")
    source = find(bench({"numbers": ([prompt], {"test": rows})}), manifest_of())["numbers"]
    ids = [e.example_id for e in read(source, "test")[0]]
    assert ids[:2] == ["test-q7", "test-3"]
    assert re.fullmatch(r"[0-9a-f]{16}", ids[2])


def test_all_that_a_random_choice_may_give_are_references(bench, manifest_of):
    prompts = [
        template("Correct {{n}}: ||| {{ fixes | choice }}"),
        template("{% set f = fixes | choice %}Judge {{f}}: ||| {{f}}"),
    ]
    rows = [{"n": 1, "fixes": ["one", "One", "one"]}]
    source = find(bench({"numbers": (prompts, {"test": rows})}), manifest_of())["numbers"]
    corrected, judged = read(source, "test")[0]
    assert corrected.references[0] == corrected.target
    assert sorted(corrected.references) == ["One", "one"]
    assert judged.references == (judged.target,)


def test_repeated_training_texts_are_dropped(bench):
    splits = {"train": parity_rows(20) * 2, "validation": parity_rows(3)}
    source = find(bench({"numbers": (PARITY[:1], splits)}))["numbers"]
    examples, drops = read(source, "train")
    assert (len(examples), drops) == (20, {"duplicate": 20})


# --- the whole line, and real data


def test_a_task_is_cached_by_prepare(bench, tmp_path):
    root = bench({"numbers": (PARITY, {"train": parity_rows(60), "validation": parity_rows(8)})})
    sources = find_sources({"promptsource": str(root)}, MANIFEST)
    model = tmp_path / "small.model"
    train_sentencepiece(
        [f"Is {i} even? Say it in words: yes no Answer:" for i in range(99)], model, 300
    )
    summary = prepare(
        sources, f"sentencepiece:{model}", PromptConfig(delimiter="\nAnswer:"), tmp_path / "cache"
    )
    assert not summary.failures
    task = Store(tmp_path / "cache").task("promptsource/numbers")
    assert {s: r["examples"] for s, r in task.info["splits"].items()} == {
        "train": 60,
        "validation": 24,
    }
    again = prepare(
        sources, f"sentencepiece:{model}", PromptConfig(delimiter="\nAnswer:"), tmp_path / "cache"
    )
    assert [o.status for o in again.outcomes.values()] == ["unchanged"]


def test_every_row_of_the_real_data_sets_is_read(real_data):
    counts = {}
    for source in promptsource.find_tasks(real_data / "promptsource", MANIFEST):
        for split in source.splits:
            examples, drops = read(source, split)
            drops.pop("template does not apply to the row", None)
            counts[source.name.removeprefix("promptsource/"), split] = (len(examples), drops)
            assert {e.prompt_id for e in examples} == set(source.settings["prompts"])
            if MANIFEST.row(source).metric == "acc_rank":
                assert all(e.target in e.options for e in examples)
    print(json.dumps({f"{task} {split}": n for (task, split), (n, _) in counts.items()}))
    assert counts == {
        ("ag_news", "train"): (3000, {}),
        ("ag_news", "validation"): (250, {}),
        ("codah/codah", "train"): (2776, {}),  # not trained on: it holds Winograd schemas
        ("dbpedia_14", "train"): (1500, {}),
        ("dbpedia_14", "validation"): (250, {}),
        ("glue/mnli", "train"): (3000, {}),
        ("glue/mnli", "validation"): (250, {}),
        ("glue/qqp", "train"): (2000, {}),
        ("glue/qqp", "validation"): (250, {}),
        ("imdb", "train"): (500, {}),
        ("imdb", "validation"): (250, {}),
        ("super_glue/boolq", "train"): (1000, {}),
        ("super_glue/boolq", "validation"): (250, {}),
        ("super_glue/cb", "train"): (250, {}),
        ("super_glue/cb", "test"): (840, {}),
        ("super_glue/copa", "train"): (400, {}),
        ("super_glue/copa", "test"): (250, {}),
        ("super_glue/multirc", "train"): (400, {}),
        ("super_glue/multirc", "validation"): (250, {}),
        ("super_glue/rte", "train"): (1999, {"duplicate": 1}),
        ("super_glue/rte", "test"): (2770, {}),
        ("yelp_review_full", "train"): (700, {}),
        ("yelp_review_full", "validation"): (250, {}),
    }
