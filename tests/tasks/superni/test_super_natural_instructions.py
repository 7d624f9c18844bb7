import collections
import json
import pathlib
import pickle

import pytest

from optiml_jax.data.example import Drops, TaskSource
from optiml_jax.errors import UserError
from tasks.splits import Manifest, category
from tasks.superni.reader import find_tasks

MANIFEST = Manifest.load()


def find(root, manifest=MANIFEST) -> dict[str, TaskSource]:
    return {s.name.split("/")[1]: s for s in find_tasks(root, manifest)}


def only(root, manifest=MANIFEST) -> TaskSource:
    (source,) = find_tasks(root, manifest)
    return source


def read(source: TaskSource, split: str) -> list:
    return list(source.read(split, Drops()))


def write_manifest(path, *rows: str) -> Manifest:
    base = '{tasks: "superni/*", level: partially_held_out, role: [test], src: inferred}'
    path.write_text("rows:\n" + "".join(f"- {row}\n" for row in (base, *rows)), "utf-8")
    return Manifest.load(path)


# --- what an official file gives ------------------------------------------------------------------


def test_an_instance_becomes_an_example(write_bench):
    content = write_bench.content(
        n=0,
        Instances=[{"id": "task9-1", "input": " 14\r\n15 ", "output": [" yes ", "yep", "yes"]}],
    )
    source = only(write_bench({"task9_even": content}, test=["task9_even"]))
    (example,) = read(source, "test")
    assert (example.benchmark, example.task) == ("superni", "superni/task9_even")
    assert (example.example_id, example.prompt_id, example.split) == (
        "task9-1",
        "definition",
        "test",
    )
    assert example.instruction == "Say whether the number is even."
    assert (example.input, example.target, example.references) == ("14\n15", "yes", ("yes", "yep"))
    assert example.category == category(source) == "Mathematics"
    assert example.source_dataset == "invented"
    assert example.options is None
    assert example.meta["domains"] == ["Numbers"]


def test_a_test_task_keeps_its_first_100_instances_and_shows_only_the_others(write_bench):
    source = only(write_bench({"task1_x": write_bench.content(130)}, test=["task1_x"]))
    assert source.splits == ("train", "test")
    assert [e.example_id for e in read(source, "test")] == [f"id-{i}" for i in range(100)]
    assert [e.example_id for e in read(source, "train")] == [f"id-{i}" for i in range(100, 130)]
    assert [e.example_id for e in source.demonstrations()] == [
        "positive-0",
        "positive-1",
        *(f"id-{i}" for i in range(100, 130)),
    ]


@pytest.mark.parametrize(("n", "held_out"), [(30, 3), (2000, 100), (9, 0)])
def test_a_training_task_holds_a_tenth_back_by_position_at_most_100(write_bench, n, held_out):
    source = only(write_bench({"task1_x": write_bench.content(n)}))
    numbers = {split: [int(e.input) for e in read(source, split)] for split in source.splits}
    assert numbers == {
        "test": list(range(held_out)),
        "validation": list(range(held_out, 2 * held_out)),
        "train": list(range(2 * held_out, n)),
    }


def test_nothing_of_test_or_validation_is_trained_on_or_shown(write_bench):
    content = write_bench.content(40)
    content["Instances"][20]["input"] = content["Instances"][0]["input"]  # of test
    content["Instances"][21]["input"] = f" {content['Instances'][5]['input']}\r\n"  # of validation
    content["Positive Examples"][0]["input"] = content["Instances"][1]["input"]
    source = only(write_bench({"task1_x": content}))
    drops = Drops()
    train = list(source.read("train", drops))
    assert drops == {"input also in test or validation": 2}
    assert len(train) == 30
    held_out = {e.input for split in ("test", "validation") for e in read(source, split)}
    assert not held_out & {e.input for e in train}
    shown = source.demonstrations()
    assert not held_out & {e.input for e in shown}
    assert [e.example_id for e in shown[:2]] == ["positive-1", "id-8"]


def test_the_older_shape_is_read_with_stable_ids(write_bench):
    content = write_bench.content(30, Definition="Say whether the number is even.")
    for key in ("Input_language", "Output_language", "Domains"):
        del content[key]
    for instance in content["Instances"]:
        del instance["id"]
    source = only(write_bench({"task1_x": content}))
    examples = [e for split in source.splits for e in read(source, split)]
    assert examples[0].instruction == "Say whether the number is even."
    ids = [e.example_id for e in examples]
    assert len(set(ids)) == 30
    assert all(len(i) == 16 for i in ids)
    assert ids == [e.example_id for split in source.splits for e in read(source, split)]


def test_a_string_output_is_one_reference_and_counted(write_bench):
    content = write_bench.content(30)
    content["Instances"][0]["output"] = "yes"
    content["Instances"][1]["output"] = ["", "no"]
    source = only(write_bench({"task1_x": content}))
    drops = Drops()
    first, second, _ = source.read("test", drops)
    assert first.references == ("yes",)
    assert second.references == ("no",)
    assert drops == {"warning: output is a string": 1, "warning: empty reference left out": 1}


def test_repeated_ids_are_made_unique(write_bench):
    content = write_bench.content(30)
    content["Instances"][1]["id"] = "id-0"
    drops = Drops()
    ids = [e.example_id for e in only(write_bench({"task1_x": content})).read("test", drops)]
    assert len(set(ids)) == 3
    assert ids[0] == "id-0"
    assert drops == {"warning: repeated id": 1}


def test_options_are_the_distinct_outputs_in_natural_order(write_bench, tmp_path):
    manifest = write_manifest(
        tmp_path / "m.yaml",
        '{tasks: "superni/*", metric: acc_rank, options: labels, src: inferred}',
    )
    content = write_bench.content(12)
    outputs = ["10", "2", "1", "A", "B", "10", "2", "1", "A", "B", "A", "B"]
    for instance, output in zip(content["Instances"], outputs, strict=True):
        instance["output"] = [output]
    source = only(write_bench({"task1_x": content}), manifest)
    assert {e.options for e in read(source, "test")} == {("1", "2", "10", "A", "B")}
    for outputs, count in (([f"o{i}" for i in range(21)], 21), (["same"] * 21, 1)):
        content["Instances"] = [
            {"input": str(i), "output": [output]} for i, output in enumerate(outputs)
        ]
        source = only(write_bench({"task1_x": content}), manifest)
        with pytest.raises(UserError, match=f"superni/task1_x.* has {count} distinct outputs"):
            read(source, "test")


def test_sources_can_be_sent_to_other_processes_and_settings_are_json(write_bench):
    source = only(write_bench({"task1_x": write_bench.content(30)}))
    again = pickle.loads(pickle.dumps(source))
    assert read(again, "train") == read(source, "train")
    assert json.loads(json.dumps(source.settings)) == source.settings
    assert source.files == again.files


# --- names, splits, categories --------------------------------------------------------------------


def test_stems_keep_their_dots_and_lists_match_with_either_dash(write_bench):
    root = write_bench({"task349_squad2.0_x": write_bench.content(), "task9-a_b": "{}"})
    (root / "splits/default/train_tasks.txt").write_text("task349_squad2.0_x\n")
    (root / "splits/default/test_tasks.txt").write_text("task9_a-b\n")
    sources = find(root)
    assert sources["task349_squad2.0_x"].upstream_split == "train"
    assert sources["task9-a_b"].upstream_split == "test"


@pytest.mark.parametrize("twin", ["task1-x", "Task1_x"])
def test_two_files_of_one_registered_name_are_refused(write_bench, twin):
    root = write_bench({"task1_x": write_bench.content(), twin: write_bench.content()})
    with pytest.raises(UserError, match="have the same registered name"):
        find_tasks(root, MANIFEST)


def test_a_task_in_two_split_lists_is_refused(write_bench):
    root = write_bench({"task1_x": write_bench.content()})
    (root / "splits/default/test_tasks.txt").write_text("task1-x\n")
    with pytest.raises(UserError, match=r"'task1-x' is both in train_tasks.txt and in"):
        find_tasks(root, MANIFEST)


def test_an_unlisted_task_is_excluded_and_named(write_bench, caplog):
    root = write_bench({"task1_x": write_bench.content(), "task2_new": write_bench.content()})
    (root / "splits/default/train_tasks.txt").write_text("task1_x\n")
    source = find(root)["task2_new"]
    assert MANIFEST.row(source).role == ("exclude",)
    assert "1 superni tasks are in no list of splits/default: task2_new" in caplog.text


README = """\
## Tasks List
Name | Summary | Category | Domain | Input Language | Output Language
---- | ----------- | -------- | ----- | ----- | -----
`task1_x`\t| Say a | b.\t| Question Answering\t| News\t| English\t| English
`task2-x`\t| Two.\t| Not a name, Misc.\t| News\t| English\t| English
"""


def test_categories_come_from_the_table_then_the_tsv_then_the_file(write_bench, caplog):
    stems = ["task1_x", "task2_x", "task3_x", "task4_x", "task5_x"]
    contents = {stem: write_bench.content() for stem in stems}
    contents["task5_x"]["Categories"] = ["Classification -> Old -> Name"]
    root = write_bench(contents)
    (root / "tasks" / "README.md").write_text(README)
    (root / "categories.tsv").write_text(
        "task\tcategory\tsplit\ntask1_x\tTranslation\ttrain\ntask3-x\tTranslation\ttrain\n"
    )
    assert [category(s) for s in find_tasks(root, MANIFEST)] == [
        "Question Answering",
        "Misc.",
        "Translation",
        "Mathematics",
        "Misc.",
    ]
    assert "1 superni tasks without a known category count as Misc.: task5_x" in caplog.text


def test_the_three_column_table_of_older_clones_is_read(write_bench):
    root = write_bench({"task1_x": write_bench.content()})
    table = "Name | Summary | Category\n---- | ---- | ----\n`task1_x`\t| S.\t| Translation\n"
    (root / "tasks" / "README.md").write_text(table)
    assert category(only(root)) == "Translation"


def test_the_manifest_may_rename_a_category(write_bench):
    stem = "task685_mmmlu_answer_generation_clinical_knowledge"
    source = only(write_bench({stem: write_bench.content()}))
    assert category(source) == "MMLU"
    assert {e.category for e in read(source, "test")} == {"MMLU"}
    assert MANIFEST.row(source).aggregate_as == "mmlu"


def test_finding_2000_tasks_reads_no_task_file(write_bench):
    root = write_bench({f"task{i}_x": "this is not JSON" for i in range(2000)})
    sources = find_tasks(root, MANIFEST)
    assert len(sources) == 2000
    with pytest.raises(UserError, match="not valid JSON"):
        read(sources[0], "train")


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"output": []}, "empty target"),
        ({"output": ["", " \n"]}, "empty target"),
        ({"output": " "}, "empty target"),
        ({"output": None}, "malformed instance"),
        ({"output": [["3"]]}, "malformed instance"),
        ({"output": [True]}, "malformed instance"),
        ({"output": float("nan")}, "malformed instance"),
        ({"output": ["a\0b"]}, "NUL or U+FFFD"),
        ({"input": "caf\ufffd"}, "NUL or U+FFFD"),
        ({"input": "half \ud83d pair"}, "NUL or U+FFFD"),
        ({"input": " "}, "empty input"),
        ({"input": ["1"]}, "malformed instance"),
        ({"input": "28", "output": ["yes"]}, "duplicate"),
    ],
)
def test_an_unusable_instance_is_dropped_and_counted(write_bench, changes, reason):
    content = write_bench.content(30)
    content["Instances"][29] |= changes
    source = only(write_bench({"task1_x": content}))
    drops = Drops()
    assert len(list(source.read("train", drops))) == 23
    assert drops == {reason: 1}
    assert sum(len(read(source, split)) for split in source.splits) == 29
    assert len(source.demonstrations()) == 2 + 23


def test_outputs_that_are_numbers_are_text_as_they_are_spelled(write_bench):
    content = write_bench.content(30)
    content["Instances"][29] |= {"output": [16777217.0, 1.5, 3]}
    drops = Drops()
    *_, last = only(write_bench({"task1_x": content})).read("train", drops)
    assert last.references == ("16777217.0", "1.5", "3")
    assert drops == {"warning: output is a number": 1}


def test_a_byte_order_mark_is_no_damage(write_bench):
    source = only(write_bench({"task1_x": write_bench.content(30)}))
    (file,) = map(pathlib.Path, source.files)
    before = read(source, "train")
    file.write_text("\ufeff" + file.read_text("utf-8"), "utf-8")
    assert read(source, "train") == before


def test_one_input_with_two_answers_is_not_a_duplicate(write_bench):
    content = write_bench.content(30)
    content["Instances"][29] |= {"input": "28", "output": ["indeed"]}
    assert len(read(only(write_bench({"task1_x": content})), "train")) == 24


def test_a_file_cut_in_half_is_named_with_the_line(write_bench):
    whole = json.dumps(write_bench.content(30), indent=4)
    source = only(write_bench({"task1_x": whole[: len(whole) // 2]}))
    with pytest.raises(UserError, match=r"task1_x.json, line \d+: not valid JSON .*download") as e:
        read(source, "train")
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match=r"task1_x.json"):
        source.demonstrations()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Definition": ""}, "has an empty Definition"),
        ({"Definition": [" "]}, "has an empty Definition"),
        ({"Definition": []}, "has an empty Definition"),
        ({"Definition": ["a\ufffd"]}, "Definition of .* has a NUL or U\\+FFFD"),
        ({"Instances": None}, "no list of Instances"),
        ({"Instances": []}, "no usable instance in .*Instances is empty"),
        (
            {"Instances": [{"input": "1", "output": []}, {"input": "", "output": ["x"]}]},
            "no usable instance in .*1 empty target; 1 empty input",
        ),
    ],
)
def test_a_task_that_cannot_be_used_is_an_error_that_names_the_file(write_bench, changes, message):
    source = only(write_bench({"task1_x": write_bench.content(30, **changes)}))
    for split in source.splits:
        with pytest.raises(UserError, match=message) as e:
            read(source, split)
        assert "task1_x.json" in str(e.value)
        assert "\n" not in str(e.value)


def test_bytes_that_are_not_utf8_are_an_error(write_bench):
    source = only(write_bench({"task1_x": write_bench.content(30)}))
    path = write_bench({}) / "tasks" / "task1_x.json"
    path.write_bytes(path.read_bytes().replace(b"invented", b"invent\xe9d"))
    with pytest.raises(UserError, match=r"task1_x.json is not UTF-8"):
        read(source, "train")


def test_missing_folders_and_lists_are_named(write_bench, tmp_path):
    with pytest.raises(UserError, match=f"folder not found: {tmp_path}/nowhere/tasks; give"):
        find_tasks(tmp_path / "nowhere", MANIFEST)
    root = write_bench({})
    with pytest.raises(UserError, match=r"no task file .* in"):
        find_tasks(root, MANIFEST)
    root = write_bench({"task1_x": write_bench.content()})
    source = only(root)
    (root / "tasks" / "task1_x.json").unlink()
    with pytest.raises(UserError, match="task file not found"):
        read(source, "train")
    write_bench({"task1_x": write_bench.content()})
    (root / "splits/default/test_tasks.txt").unlink()
    with pytest.raises(UserError, match=r"split list not found: .*test_tasks.txt"):
        find_tasks(root, MANIFEST)


def test_rank_classification_without_a_label_space_is_refused(write_bench, tmp_path):
    manifest = write_manifest(
        tmp_path / "m.yaml", '{tasks: "superni/*", metric: acc_rank, src: inferred}'
    )
    with pytest.raises(UserError, match=r"superni/task1_x.*give it `options: labels`"):
        find_tasks(write_bench({"task1_x": write_bench.content()}), manifest)


# --- the real files -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_sources(real_data) -> list[TaskSource]:
    return find_tasks(real_data / "super_natural_instructions", MANIFEST)


def test_the_real_tasks_have_their_official_parts(real_sources):
    rows = [MANIFEST.row(s) for s in real_sources]
    assert collections.Counter((r.level, r.role) for r in rows) == {
        ("fully_held_out", ("test",)): 44,  # the number of tasks of table 12
        ("fully_held_out", ("dev",)): 20,
        ("held_out_unspecified", ("test_extra",)): 59,
        ("partially_held_out", ("test_max",)): 57,
        ("fully_supervised", ("train", "test_extra")): 27,
        ("fully_supervised", ("train", "dev")): 1,
        ("train_only", ("exclude",)): 3,
        ("train_only", ("train",)): 2,
    }
    official = collections.Counter(category(s) for s in real_sources if s.upstream_split == "test")
    assert official == {
        "Stereotype Detection": 1,  # officially Coreference Resolution
        "Textual Entailment": 24,
        "Title Generation": 18,
        "Coreference Resolution": 13,
        "Answerability Classification": 13,
        "Question Rewriting": 11,
        "Data to Text": 9,
        "Word Analogy": 8,
        "Cause Effect Classification": 7,
        "Dialogue Act Recognition": 7,
        "Keyword Tagging": 5,
        "Overlap Extraction": 2,
        "Grammar Error Correction": 1,
    }
    MANIFEST.check_held_out(real_sources)


def test_every_real_instance_is_read_or_a_counted_drop(real_sources, real_data):
    lines = (real_data / "MANIFEST.tsv").read_text("utf-8").splitlines()
    prefix = "super_natural_instructions/tasks/"
    expected = {
        cells[0].removeprefix(prefix).removesuffix(".json"): int(cells[3])
        for line in lines
        if (cells := line.split("\t"))[0].startswith(prefix)
    }
    assert (len(expected), sum(expected.values())) == (213, 43_705)
    total = Drops()
    for source in real_sources:
        drops = Drops()
        ids = [e.example_id for split in source.splits for e in source.read(split, drops)]
        stem = source.name.removeprefix("superni/")
        assert len(ids) == len(set(ids)) == expected[stem] - drops.total(), stem
        if stem.startswith("task511_"):
            assert drops == {"empty target": 1}
        total += drops
    assert total == {"empty target": 1, "NUL or U+FFFD": 9}


def test_real_mmlu_tasks_rank_four_letters(real_sources):
    mmlu = [s for s in real_sources if "_mmmlu_" in s.name]
    assert len(mmlu) == 57
    assert {next(s.read("test", Drops())).options for s in mmlu} == {("A", "B", "C", "D")}
