import re

import pytest

from optiml_jax.errors import UserError
from tasks.splits import Manifest
from tasks.superni.reader import find_tasks

MANIFEST = Manifest.load()
ENTAILMENT = "Textual Entailment"
BASE = '{tasks: "superni/*", level: partially_held_out, role: [test], src: inferred}'


@pytest.fixture
def manifest_of(tmp_path):
    def load(*rows: str) -> Manifest:
        path = tmp_path / "manifest.yaml"
        path.write_text("rows:\n" + "".join(f"- {row}\n" for row in rows), "utf-8")
        return Manifest.load(path)

    return load


@pytest.mark.parametrize(
    ("task", "upstream_split", "expected"),
    [
        (
            "superni/task1_x",
            "train",
            ("fully_supervised", ("train", "test_extra"), "rougeL", (0, 2, 5)),
        ),
        ("superni/task1_x", "test", ("held_out_unspecified", ("test_extra",), "rougeL", (0, 2, 5))),
        ("superni/task190_x", "test", ("fully_held_out", ("test",), "rougeL", (0, 2, 5))),
        ("superni/task1_x", "excluded", ("train_only", ("exclude",), "rougeL", (0, 2, 5))),
        ("superni/task1_x", None, ("train_only", ("exclude",), "rougeL", (0, 2, 5))),
        (
            "superni/task664_mmmlu_answer_generation_abstract_algebra",
            "train",
            ("partially_held_out", ("test_max",), "acc_rank", (0, 5)),
        ),
        (
            "demo_superni/demo001_program_execution_first_word",
            "train",
            ("fully_supervised", ("train", "test"), "rougeL", (0, 2)),
        ),
        (
            "demo_promptsource/reviews/phone",
            None,
            ("partially_held_out", ("test",), "acc_rank", (0, 2)),
        ),
        (
            "demo_superni/demo013_keyword_tagging_find_animal",
            "test",
            ("fully_held_out", ("test",), "rougeL", (0, 2)),
        ),
    ],
)
def test_the_projects_manifest_assigns_parts_levels_and_metrics(task, upstream_split, expected):
    row = MANIFEST.lookup(task, upstream_split)
    assert (row.level, row.role, row.metric, row.shots) == expected
    assert row.options == ("labels" if row.metric == "acc_rank" else None)
    assert row.instances == 100


def test_later_rows_win_field_by_field(manifest_of):
    manifest = manifest_of(
        BASE,
        '{tasks: ["superni/{a,b}_*", "superni/c?{1,2}"], metric: em, shots: [0], src: inferred}',
        '{tasks: "superni/a_*", shots: [5], src: paper}',
    )
    metrics = {
        task: (row.metric, row.shots, row.level)
        for task in ("superni/a_x", "superni/b_x", "superni/cx1", "superni/cx3", "superni/ab_x")
        for row in [manifest.lookup(task, None)]
    }
    assert metrics == {
        "superni/a_x": ("em", (5,), "partially_held_out"),
        "superni/b_x": ("em", (0,), "partially_held_out"),
        "superni/cx1": ("em", (0,), "partially_held_out"),
        "superni/cx3": ("rougeL", (0,), "partially_held_out"),
        "superni/ab_x": ("rougeL", (0,), "partially_held_out"),
    }


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{tasks: "a/*", level: held_out, src: paper}', "unknown level 'held_out'; known: fully_"),
        ('{tasks: "a/*", metric: f1, src: paper}', "unknown metric 'f1'; known: acc_rank"),
        ('{tasks: "a/*", role: [training], src: paper}', "unknown role 'training'"),
        ('{tasks: "a/*", role: train, src: paper}', "role must be a list"),
        ('{tasks: "a/*", role: [train, exclude], src: paper}', "role exclude stands alone"),
        ('{tasks: "a/*", options: letters, src: paper}', "unknown options 'letters'"),
        ('{tasks: "a/*", shots: 5, src: paper}', "shots must be a list"),
        ('{tasks: "a/*", instances: 100, src: paper}', "instances must be first<number>"),
        ('{tasks: "a/*", instances: first0, src: paper}', "instances must be first<number>"),
        ('{tasks: "a/*", prompts: some, src: paper}', "prompts must be a number, a list"),
        ('{tasks: "a/*", prompts: true, src: paper}', "or 'all', not True"),
        ('{tasks: "a/*", prompts: 0, src: paper}', "or 'all', not 0"),
        ('{tasks: "a/*", prompts: [1], src: paper}', "or 'all', not [1]"),
        ('{tasks: "a/*", prompts: [], src: paper}', "or 'all', not []"),
        ('{tasks: "a/*", shots: [true], src: paper}', "shots must be a list of numbers"),
        ('{tasks: "a/*", category: [a], src: paper}', "category must be text, in quotation"),
        ('{tasks: "a/*", category: 3, src: paper}', "category must be text, in quotation"),
        ('{tasks: "a/*", aggregate_as: 7, src: paper}', "aggregate_as must be text, "),
        ('{tasks: "a/*", keep: [1], src: paper}', "keep must be text, in quotation marks, not [1]"),
        ('{tasks: "a/*", keep: "", src: paper}', "keep must be text, in quotation marks, not ''"),
        ('{tasks: "a/*", upstream_split: 1, src: paper}', "upstream_split must be text"),
        ('{tasks: "a/*", stop: 5, src: paper}', "Protocol.stop = 5 (int) must be text"),
        ('{tasks: "a/*", max_new_tokens: many, src: paper}', "max_new_tokens = 'many' (text) must"),
        ('{tasks: "a/*", samples: x, src: paper}', "Protocol.samples = 'x' (text) must be a whole"),
        ('{tasks: "a/*", delimiter: 5, src: paper}', "Protocol.delimiter = 5 (int) must be text"),
        ('{tasks: "a/*", joiner: null, src: paper}', "Protocol.joiner = None (NoneType) must be"),
        ('{tasks: "a/*", separator: 3, src: paper}', "Protocol.separator = 3 (int) must be text"),
        ('{tasks: "a/*", only_with: luck, src: paper}', "unknown only_with 'luck'; known: unique"),
        ('{tasks: "a/*", levle: train_only, src: paper}', "unknown key 'levle'; known: tasks"),
        ('{tasks: "a/*", level: train_only}', "src must be paper or inferred, not None"),
        ('{tasks: "a/{b,c", src: paper}', "the braces of pattern 'a/{b,c' do not match"),
        ('{tasks: "a/b}", src: paper}', "the braces of pattern 'a/b}' do not match"),
        ('{tasks: "a/{b,{c,d}}", src: paper}', "the braces of pattern"),
        ('{tasks: "task1", src: paper}', "'task1' is not a pattern of the form"),
        ("{level: train_only, src: paper}", "must be a mapping with `tasks`"),
        ("superni", "must be a mapping with `tasks`"),
    ],
)
def test_a_bad_row_is_an_error_with_file_and_row(manifest_of, row, message):
    with pytest.raises(UserError) as e:
        manifest_of(BASE, row)
    assert re.search(r"manifest.yaml, row 2: ", str(e.value))
    assert message in str(e.value)
    assert "\n" not in str(e.value)


def test_a_text_of_stop_is_one_string_not_its_letters(manifest_of):
    manifest = manifest_of(BASE, '{tasks: "superni/*", stop: "Q:", temperature: 1, src: paper}')
    protocol = manifest.lookup("superni/a_x", None).protocol
    assert (protocol.stop, protocol.temperature) == (("Q:",), 1.0)


def test_a_missing_or_damaged_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match="split manifest not found"):
        Manifest.load(tmp_path / "none.yaml")
    path = tmp_path / "bad.yaml"
    path.write_text('rows:\n- {tasks: "a/*"\n- {}\n')
    with pytest.raises(UserError, match=r"not YAML: .*bad.yaml, line 3: "):
        Manifest.load(path)
    path.write_text("version: 1\n")
    with pytest.raises(UserError, match="has no list of rows"):
        Manifest.load(path)


@pytest.mark.parametrize("level", ["partially_held_out", "fully_held_out", "train_only"])
def test_only_a_fully_supervised_task_is_both_trained_on_and_tested(manifest_of, level):
    manifest = manifest_of(f'{{tasks: "a/*", level: {level}, role: [train, test], src: paper}}')
    with pytest.raises(
        UserError, match=f"row 1: task 'a/b' is both trained on and evaluated at level {level}"
    ):
        manifest.lookup("a/b", None)


def test_another_number_of_prompts_than_expected_is_reported(manifest_of, caplog):
    row = manifest_of(BASE, '{tasks: "superni/a", prompts: 3, src: paper}').lookup(
        "superni/a", None
    )
    row.check_prompts("superni/a", 3)
    assert not caplog.records
    row.check_prompts("superni/a", 2)
    assert caplog.messages == ["superni/a has 2 prompts, not the expected 3"]
    row = manifest_of(BASE, '{tasks: "superni/a", prompts: [x], src: paper}').lookup(
        "superni/a", None
    )
    row.check_prompts("superni/a", 0)
    assert caplog.messages[1:] == ["superni/a has 0 prompts, not the expected 1"]


def test_the_reason_of_a_task_is_that_of_the_row_that_gave_its_role(manifest_of):
    manifest = manifest_of(
        BASE.replace("}", ", why: base}"),
        '{tasks: "superni/{a,b}", role: [exclude], src: paper}',
        '{tasks: "superni/b", metric: em, src: inferred, why: another metric}',
    )
    reasons = {t: (r.src, r.why) for t in "abc" for r in [manifest.lookup(f"superni/{t}", None)]}
    assert reasons == {"a": ("paper", None), "b": ("paper", None), "c": ("inferred", "base")}


def test_a_task_without_level_or_with_options_but_no_ranking_is_refused(manifest_of):
    with pytest.raises(UserError, match="gives task 'b/x' no level and role"):
        manifest_of(BASE).lookup("b/x", None)
    manifest = manifest_of(BASE, '{tasks: "superni/*", options: labels, src: paper}')
    with pytest.raises(UserError, match="options but metric rougeL"):
        manifest.lookup("superni/x", None)


def test_training_on_a_held_out_category_is_an_error_that_names_both(write_bench, manifest_of):
    stems = ("task1_train", "task202_test", "task3_excluded")
    contents = {stem: write_bench.content() | {"Categories": [ENTAILMENT]} for stem in stems}
    root = write_bench(contents, stems[1:2], stems[2:])
    sources = find_tasks(root, MANIFEST)
    with pytest.raises(UserError) as e:
        MANIFEST.check_held_out(sources)
    for part in ("'superni/task1_train'", "'superni/task202_test'", repr(ENTAILMENT)):
        assert part in str(e.value)
    MANIFEST.check_held_out(sources[1:])
    MANIFEST.check_held_out(sources[::2])
    partially = manifest_of(
        BASE,
        '{tasks: "superni/task1_*", level: fully_supervised, role: [train, test], src: inferred}',
    )
    partially.check_held_out(sources)


def test_a_pattern_that_matches_no_task_is_reported(write_bench, manifest_of, caplog):
    sources = find_tasks(write_bench({"task1_x": write_bench.content()}), MANIFEST)
    manifest = manifest_of(
        BASE,
        '{tasks: "superni/task{1,2}_*", metric: em, src: paper}',
        '{tasks: "flan/*", metric: em, src: paper}',
    )
    manifest.warn_of_unmatched_rows(sources)
    (record,) = caplog.records
    assert record.getMessage() == "1 patterns of manifest.yaml match no task: superni/task2_*"
