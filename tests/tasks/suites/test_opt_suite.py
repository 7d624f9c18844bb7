"""The 14 tasks of OPT against GPT-3's published prompts, on real rows and on rows of each form."""

import json

import pytest

from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig, render, select_demonstrations
from optiml_jax.errors import UserError
from optiml_jax.evaluate.instances import InstanceBuilder
from tasks.splits import Manifest
from tasks.suites.opt_suite import facts_of_all, find_tasks

MANIFEST = Manifest.load()
ARC = {
    "id": "x",
    "question": "Which is hot?",
    "choices": {"text": ["ice", "fire", "snow"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
WSC = {"text": "The dog bit  Ann's cat because it was angry.", "span2_text": "it", "span2_index": 6}
ROWS = {  # data set -> rows as Hugging Face has them
    "ai2_arc/ARC-Challenge": [ARC],
    "ai2_arc/ARC-Easy": [ARC | {"choices": {"text": ["ice", "fire"], "label": ["A", "2"]}}],
    "openbookqa/main": [ARC | {"question_stem": "A fire is"}],
    "piqa": [
        {"goal": "To cut,", "sol1": "use a knife.", "sol2": "use a spoon.", "label": 0},
        {"goal": "Hidden", "sol1": "a", "sol2": "b", "label": -1},
    ],
    "story_cloze/2016": [
        {f"input_sentence_{i}": f"Bo did {i}." for i in range(1, 5)}
        | {"sentence_quiz1": "He won.", "sentence_quiz2": "He sang.", "answer_right_ending": 2}
    ],
    "super_glue/wic": [
        {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "label": 0}
    ],
    "winogrande/winogrande_xl": [
        {
            "sentence": "Ian ate Dennis's menudo because _'s soup was gone.",
            "option1": "Ian",
            "option2": "Dennis",
            "answer": "1",
        }
    ],
    "winograd_wsc/wsc273": [
        {
            "text": "The councilmen met the mob because they feared violence.",
            "pronoun": "they",
            "pronoun_loc": 35,
            "options": ["The councilmen", "The mob"],
            "label": 0,
        },
        {
            "text": "Jane thanked Susan. Her help was good.",
            "pronoun": "Her",
            "pronoun_loc": 20,
            "options": ["Jane", "Susan"],
            "label": 1,
        },
    ],
    "super_glue/wsc.fixed": [
        WSC | {"span1_text": "The dog", "label": 1},
        WSC | {"span1_text": "Ann's cat", "label": 0},
        {"text": "Al saw Bo so he ran.", "span2_text": "he", "span2_index": 4}
        | {"span1_text": "Al", "label": 0},
    ],
}


def write(folder, rows: dict[str, list], split: str):
    for dataset, content in rows.items():
        path = folder / dataset / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in content))


@pytest.fixture
def made(tmp_path):
    """The tasks of made rows, by name; every split has the same ones."""
    for split in ("train", "validation", "test"):
        write(tmp_path, ROWS, split)
    return {s.name.removeprefix("opt14/"): s for s in find_tasks(tmp_path, MANIFEST)}


def only(source, split="test"):
    (example,) = source.read(split, Drops())
    return example


def prompt(example, demonstrations=()):
    config = PromptConfig(separator="\n\n")
    return render(example, demonstrations, "verbatim", config).source()


def test_every_task_of_the_manifest_is_described():
    wanted = {n for n in MANIFEST.evaluation_tasks() if n.startswith("opt14/")}
    assert {f"opt14/{task}" for task in facts_of_all()} == wanted
    assert len(wanted) == 14
    rules = {n: MANIFEST.lookup(n, None).protocol.rule for n in wanted}
    by_answer = {n for n, rule in rules.items() if rule == "unconditional"}
    assert by_answer == {"opt14/arc_easy", "opt14/arc_challenge", "opt14/openbookqa"}


def test_the_prompts_are_those_of_gpt_3(made):
    """Brown et al., figures G.4, G.8, G.11, G.17 and G.32, with our words in their places."""
    arc = only(made["arc_challenge"])
    assert prompt(arc) == "Question: Which is hot?\nAnswer:"
    assert (arc.options, arc.references) == (("ice", "fire", "snow"), ("fire",))
    assert prompt(only(made["openbookqa"])) == "A fire is"
    assert prompt(only(made["storycloze"])) == "Bo did 1. Bo did 2. Bo did 3. Bo did 4."
    assert only(made["storycloze"]).references == ("He sang.",)
    assert prompt(only(made["wic"])) == (
        "A bank.\nThe bank.\nquestion: Is the word 'bank' used in the same way in the two "
        "sentences above?\nanswer:"
    )
    drops = Drops()
    (piqa,) = made["piqa"].read("test", drops)
    assert (prompt(piqa), piqa.references, drops["no label"]) == ("To cut,", ("use a knife.",), 1)


def test_partial_scoring_fills_in_the_options_and_scores_the_rest(made):
    grande = only(made["winogrande"])
    # The possessive stays with the option (reference: fixes of the option belong to the task).
    assert grande.contexts[0] == "Ian ate Dennis's menudo because Ian's"
    assert (grande.target.strip(), grande.references) == ("soup was gone.", ("Ian",))
    low, capital = made["winograd"].read("test", Drops())
    assert low.contexts[1] == "The councilmen met the mob because the mob"
    assert low.target == " feared violence."
    assert capital.contexts == ("Jane thanked Susan. Jane's", "Jane thanked Susan. Susan's")
    assert (capital.references, capital.target) == (("Susan's",), " help was good.")
    drops = Drops()
    (wsc,) = made["wsc"].read("test", drops)
    assert wsc.contexts == (
        "The dog bit Ann's cat because the dog",
        "The dog bit Ann's cat because Ann's cat",
    )
    assert wsc.references == ("the dog",)
    assert drops == {"no noun to choose, or none to choose from": 1}


def test_what_is_scored_in_part_differs_in_the_context_alone(made):
    """As the model gets it: Winograd shows other schemas of the same split, never its own."""
    source = made["winograd"]
    examples = list(source.read("test", Drops()))
    builder = InstanceBuilder(
        "verbatim", PromptConfig(separator="\n\n"), lambda texts: [list(t.encode()) for t in texts],
        2048, 8,
    )  # fmt: skip
    first, second = builder.build(examples, source.demonstrations(), 32, rank=True)
    shown = "Jane thanked Susan. Susan's help was good.\n\n"
    assert [bytes(c).decode() for c in first.contexts] == [shown + c for c in examples[0].contexts]
    assert {bytes(ids).decode() for ids in first.candidate_ids} == {" feared violence."}
    assert (first.correct, second.correct) == ((0,), (1,))


def test_real_rows_of_superglue(real_data):
    """Rows and labels as counted in dataset_info.json; prompts as in figures G.5 and G.29 on."""
    sources = {s.name: s for s in find_tasks(real_data / "datasets", MANIFEST)}
    assert set(sources) == {f"opt14/{t}" for t in ("boolq", "cb", "copa", "multirc", "rte")}
    tests = {name: list(s.read("test", Drops())) for name, s in sources.items()}
    sizes = {name.removeprefix("opt14/"): len(rows) for name, rows in tests.items()}
    assert sizes == {"boolq": 800, "cb": 56, "copa": 100, "multirc": 100, "rte": 277}
    assert prompt(tests["opt14/copa"][0]) == "The man turned on the faucet therefore"
    assert prompt(tests["opt14/copa"][4]) == "The hamburger meat browned because"
    assert tests["opt14/copa"][3].options[1] == "I shut off the light in the unoccupied room."
    assert prompt(tests["opt14/cb"][0]).endswith(
        "\nquestion: Valence was helping. true, false, or neither?\nanswer:"
    )
    right = [row.references[0] for row in tests["opt14/cb"]]
    assert [right.count(label) for label in ("true", "false", "neither")] == [23, 28, 5]
    assert prompt(tests["opt14/rte"][0]).endswith(" True or False?\nanswer:")
    assert prompt(tests["opt14/boolq"][0]).endswith("\nanswer:")
    assert {row.options for row in tests["opt14/boolq"]} == {("no", "yes")}
    shown = sources["opt14/cb"].demonstrations()
    config = PromptConfig(separator="\n\n", demonstrations="per_instance")
    chosen = select_demonstrations(tests["opt14/cb"][0], shown, 32, config)
    text = prompt(tests["opt14/cb"][0], chosen)
    assert len(chosen) == 32
    assert text.count("\nanswer: ") == 32
    assert text.startswith(f"{chosen[0].input}{chosen[0].target}\n\n{chosen[1].input}")


def test_multirc_groups_the_answers_of_a_question(real_data):
    sources = {s.name: s for s in find_tasks(real_data / "datasets", MANIFEST)}
    examples = list(sources["opt14/multirc"].read("test", Drops()))
    path = real_data / "datasets" / "super_glue" / "multirc" / "validation.jsonl"
    rows = [json.loads(line)["idx"] for line in path.read_text().splitlines()]
    upstream = {(row["paragraph"], row["question"]) for row in rows}
    assert len({e.meta["group"] for e in examples}) == len(upstream) > 1
    assert prompt(examples[0]).startswith("READING COMPREHENSION ANSWER KEY\n\nThe explosion,")
    assert prompt(examples[0]).endswith("\n\nWho is Rysakov?\n-")
    assert examples[0].options == ("[False] Terrorist", "[True] Terrorist")


def test_story_cloze_from_its_own_csv_files(tmp_path):
    header = (
        "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
    )
    folder = tmp_path / "story_cloze"
    folder.mkdir()
    for split, right in (("val", 1), ("test", 2)):
        name = f"cloze_test_{split}__spring2016 - cloze_test_ALL_{split}.csv"
        (folder / name).write_text(header + f'a1,"Bo, ""B"", ran.",B.,C.,D.,Won.,Lost.,{right}\n')
    (source,) = find_tasks(tmp_path, MANIFEST)
    assert prompt(only(source)) == 'Bo, "B", ran. B. C. D.'
    assert only(source).references == ("Lost.",)
    assert [e.references for e in source.demonstrations()] == [("Won.",)]
    (folder / name).write_text("InputStoryid,AnswerRightEnding\na1,1\n")
    with pytest.raises(UserError, match="line 2: no column 'InputSentence1'"):
        only(source)


def test_bad_rows_and_folders(tmp_path):
    with pytest.raises(UserError, match="folder not found"):
        find_tasks(tmp_path / "none", MANIFEST)
    with pytest.raises(UserError, match="no data set of benchmark 'opt14'"):
        find_tasks(tmp_path, MANIFEST)
    row = ROWS["piqa"][0]
    bad = [{**row, "label": 2}, {"goal": 1}, {**row, "sol2": row["sol1"]}, row]
    write(tmp_path, {"piqa": bad}, "validation")
    (source,) = find_tasks(tmp_path, MANIFEST)
    drops = Drops()
    assert len(list(source.read("test", drops))) == 1
    assert drops == {"malformed row": 2, "options that are empty or the same": 1}
    assert source.demonstrations() == []
    write(tmp_path, {"piqa": bad[:1]}, "validation")
    with pytest.raises(UserError, match=r"no usable row .*piqa/validation.jsonl .1 malformed row"):
        list(source.read("test", Drops()))
