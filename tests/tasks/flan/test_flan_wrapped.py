"""FLAN v2's prompts around the examples of other collections.

What is expected was put together by hand from the templates of `flan_clone.py`, as flan/v2 of
google-research/FLAN has it (tasks.py, few_shot.py, preprocessors.py).
"""

import collections
import itertools
import pickle

import flan_clone
import gin
import pytest
import yaml
from promptsource_bench import template, write_rows, write_templates

from optiml_jax.cli.gin_files import read_settings
from optiml_jax.data.example import Drops
from optiml_jax.data.prompts import PromptConfig
from optiml_jax.data.training_prompts import training_prompt
from optiml_jax.errors import UserError
from tasks.flan.wrapped import p3_name, read_t0_types
from tasks.registry import find_sources
from tasks.splits import Manifest

CONFIG = PromptConfig(shots=(0.5, 0.0, 0.25, 0.25), demonstrations="train")
COLLECTIONS = ("promptsource", "reasoning", "superni")


@pytest.fixture
def clone(tmp_path):
    gin.bind_parameter("FlanConfig.wrapped", COLLECTIONS)
    root = flan_clone.write_clone(tmp_path / "flan")
    gin.bind_parameter("FlanConfig.clone", str(root))
    return root


def prompts(source, drops=None, most=None):
    """The first training examples with their prompts and demonstrations."""
    read = source.read("train", Drops() if drops is None else drops)
    examples = list(itertools.islice(read, most))
    shown = [training_prompt(e, examples, source.instruction_level, CONFIG) for e in examples]
    return [(e, *pair) for e, pair in zip(examples, shown, strict=True)]


def shares(found) -> dict[str, float]:
    kinds = collections.Counter(e.prompt_id.rsplit(".", 1)[1].split("#")[0] for e, *_ in found)
    return {kind: n / len(found) for kind, n in kinds.items()}


# --- chain of thought -----------------------------------------------------------------------------


@pytest.fixture
def reasoning(tmp_path):
    rows = [
        f"Is {i} even?\\nOptions:\\n- yes\\n- no\tyes\tHalf of {i}\\nis whole." for i in range(900)
    ]
    folder = tmp_path / "reasoning"
    folder.mkdir()
    for name in ("ecqa", "aqua", "cos_e"):
        (folder / f"{name}_train.tsv").write_text("\n".join(rows) + "\n")
    return folder


def find(name, folder) -> dict:
    return {s.name: s for s in find_sources({name: str(folder)}, Manifest.load())}


def test_chains_of_thought_have_the_wordings_of_their_set(clone, reasoning, caplog):
    sources = find("reasoning", reasoning)
    found = prompts(sources["reasoning/ecqa"])
    expected = {"zs_opt": 0.5, "fs_opt": 0.25, "fs_mix": 0.25}
    assert shares(found) == pytest.approx(expected, abs=0.06)
    texts, separators = set(), set()
    for i, (example, prompt, demonstrations) in enumerate(found):
        question, thought = f"Is {i} even?\nOptions:\n- yes\n- no", f"Half of {i}\nis whole."
        whole = prompt.source() + "|" + prompt.target
        if example.prompt_id == "instruction/cot_ecqa.zs_opt#0":
            assert whole == f"{question} Reason aloud:|{thought}\nHence yes."
        elif example.prompt_id == "instruction/cot_ecqa.zs_opt#1":
            assert whole == f"Slowly now. {question}\n|{thought} So it is yes."
        else:
            mixed = ".fs_mix" in example.prompt_id
            assert len(demonstrations) in ((5,) if mixed else (2, 3))
            separators |= {prompt.separator} if mixed else set()
            assert mixed or prompt.separator == "\n==\n"
            query = f"Q-- {question}\nA--"
            assert prompt.source() == prompt.separator.join((*prompt.demonstrations, query))
            shown = prompt.demonstrations
            assert len(shown) == len(demonstrations)
            for text in shown:
                number = text.split()[2]
                assert text == query.replace(str(i), number) + (
                    f" Thoughts: Half of {number}\nis whole.\nHence yes."
                )
        texts.add(example.prompt_id)
    assert len(texts) == 4
    assert len(separators) == 1  # the task's
    assert separators <= {"\n", "\n\n", "\n\n\n"}
    assert prompts(sources["reasoning/aqua"])[0][0].prompt_id.startswith("instruction/stream_aqua.")
    assert sources["reasoning/cos_e"].settings.get("flan_v2") is None
    assert "1 of 3 reasoning tasks keep their own prompts" in caplog.text
    assert "reasoning/cos_e" in caplog.text


def test_inverted_sets_have_their_published_weight(clone, reasoning):
    gin.bind_parameter("FlanConfig.inverted", True)
    found = prompts(find("reasoning", reasoning)["reasoning/ecqa"])
    inverted = [e for e, *_ in found if "input_inversion" in e.prompt_id]
    assert len(inverted) / len(found) == pytest.approx(0.3 / 1.3, abs=0.05)
    assert {e.target.split()[0] for e in inverted} >= {"Since", "Is"}


# --- Super-NaturalInstructions --------------------------------------------------------------------


def test_definitions_stand_once_before_all_demonstrations(clone, write_bench):
    definition = "Say whether the number is even."
    content = {
        "Definition": [definition],
        "Positive Examples": [{"input": "2", "output": "yes", "explanation": "It ends with 2."}],
        "Instances": [{"input": f"n{i}", "output": [f"o{i}"]} for i in range(1000)],
    }
    (source,) = find("superni", write_bench({"task1_x": content})).values()
    found = prompts(source)
    expected = {"zs_opt": 0.5, "fs_opt": 0.25, "fs_inline": 0.25}
    assert shares(found) == pytest.approx(expected, abs=0.06)
    for example, prompt, demonstrations in found:
        text, answer = example.slots["input"], example.slots["output"]
        whole = prompt.source()
        kind = example.prompt_id.split("/")[1]
        if kind == "natinst_v2.zs_opt#0":
            assert whole == f"{definition}\n\n{text}"
        elif kind == "natinst_v2.zs_opt#1":
            assert whole == f"Do this: {definition}\nQ: {text}\nA:"
        elif kind == "natinst_v2.fs_opt#0":
            shown = [f"In: {d.slots['input']}\nOut: {d.slots['output']}" for d in demonstrations]
            assert whole == definition + "\n\n" + "\n--\n".join((*shown, f"In: {text}\nOut:"))
        elif kind == "natinst_v2.fs_inline#0":
            assert whole == f"{definition}\nFor 2 say yes: It ends with 2.\nFor {text} say"
        else:
            shown = [
                f"Consider {d.slots['input']}\n\n Result: {d.slots['output']}"
                for d in demonstrations
            ]
            asked = "\n\n\n".join((*shown, f"Consider {text}\n\n"))
            assert whole == f"TASK {definition}\n{asked}"
            answer = f"Result: {answer}"
        assert prompt.target == answer
        assert prompt.source(0).startswith(whole[:10])
        assert len(demonstrations) == (2 if ".fs_opt" in kind else 0)
    # Evaluations and their demonstrations are as they were.
    assert {e.prompt_id for e in source.read("test", Drops())} == {"definition"}
    assert all(e.instruction == definition and e.form is None for e in source.demonstrations())
    again = pickle.loads(pickle.dumps(source))
    assert list(again.read("train", Drops())) == [e for e, *_ in found]


@pytest.mark.parametrize("shown", [[], [{"input": "n0", "output": "o0"}]])
def test_no_example_is_shown_that_is_not_there_or_held_out(clone, write_bench, shown):
    instances = [{"input": f"n{i}", "output": [f"o{i}"]} for i in range(200)]
    content = {"Definition": ["Do."], "Positive Examples": shown, "Instances": instances}
    (source,) = find("superni", write_bench({"task1_x": content})).values()
    expected = {"zs_opt": 0.5, "fs_opt": 0.5}
    assert shares(prompts(source)) == pytest.approx(expected, abs=0.15)


# --- PromptSource ---------------------------------------------------------------------------------


@pytest.fixture
def bugs(tmp_path):
    folder = tmp_path / "promptsource"
    listed = {"metadata": {"choices_in_prompt": True}}
    made = [
        template("Bug {{n}}.\nOne? ||| {{['no','yes'][y]}}", "no ||| yes", name="Is it one?"),
        template("Bug {{n}}: no or yes? ||| {{['no','yes'][y]}}", "no ||| yes", name="pick"),
        template("Count {{n}} ||| {{n}}", name="tell"),
        template("New {{n}} ||| {{['no','yes'][y]}}", "no ||| yes", name="unknown"),
    ]
    made[1]["metadata"] |= listed["metadata"]
    write_templates(folder / "templates", "bugs", made)
    rows = [{"id": i, "n": f"b{i}", "y": i % 2} for i in range(3000)]
    write_rows(folder / "datasets", "bugs", train=rows)
    return folder


def test_prompts_of_p3_are_wrapped_by_their_type(clone, bugs, tmp_path):
    path = tmp_path / "manifest.yaml"
    row = {"tasks": "*/*", "level": "fully_supervised", "role": ["train"], "src": "inferred"}
    path.write_text(yaml.safe_dump({"rows": [row | {"metric": "rougeL"}]}))
    (source,) = find_sources({"promptsource": str(bugs)}, Manifest.load(path))
    drops = Drops()
    found = prompts(source, drops)
    groups = collections.defaultdict(list)
    for item in found:
        groups[item[0].meta["template"]].append(item)
    types = {
        name: {e.prompt_id.split("/")[1].split(".")[0] for e, *_ in items}
        for name, items in groups.items()
    }
    assert types == {
        "Is it one?": {"t0_multiple_choice_separated_options"},
        "pick": {"t0_multiple_choice"},
        "tell": {"t0_question_answer"},
        "unknown": {"t0_multiple_choice_separated_options"},
    }
    warning = "warning: FLAN v2 does not have the prompt, only its form"
    assert drops[warning] == len(groups["unknown"])
    expected = dict.fromkeys(("zs_opt", "zs_noopt", "fs_noopt"), 0.25)
    expected |= dict.fromkeys(("fs_opt", "fs_mix"), 0.125)
    for items in groups.values():
        assert shares(items) == pytest.approx(expected, abs=0.06)
    for example, prompt, demonstrations in groups["Is it one?"]:
        number = int(example.slots["question"].split()[1][1:-1])
        question, kind = f"Bug b{number}. One?", example.prompt_id.split(".")[1]
        assert question in prompt.query  # on one line
        assert {d.meta["template"] for d in demonstrations} <= {"Is it one?"}
        assert ("no" in prompt.query) == ("noopt" not in kind)
        answer = ("no", "yes")[number % 2]
        if kind.startswith("zs_opt"):
            assert answer == ("no", "yes")[example.options.index(example.target)]
        else:
            assert example.target == answer
    for example, prompt, _ in groups["tell"]:
        if ".fs_" in example.prompt_id and ".fs_mix" not in example.prompt_id:
            number = example.slots["answer"]
            assert prompt.query == f"Count {number}\n"
            assert prompt.target == f"Ans: {number}"
            first = prompt.source().split("\n\n")[0]
            count = first.split()[1]
            assert first == f"Count {count}\n Ans: {count}"


def test_p3s_names_and_types(clone):
    # Names as they stand in flan/v2/constants_t0.py.
    assert p3_name("wiki_qa", "Is This True?") == "wiki_qa_Is_This_True_"
    found = p3_name("super_glue/copa", "…What could happen next, C1 or C2?")
    assert found == "super_glue_copa__What_could_happen_next_C1_or_C2_"
    assert read_t0_types(clone) == {
        "bugs_Is_it_one_": "t0_multiple_choice_separated_options",
        "bugs_pick": "t0_multiple_choice",
        "bugs_tell": "t0_question_answer",
    }


# --- settings -------------------------------------------------------------------------------------


def test_bad_settings_are_one_line(clone, reasoning):
    path = clone / "flan/v2/constants_t0.py"
    path.write_text("T0_TRAIN_TASK_METADATA = make()")
    with pytest.raises(UserError, match=r"constants_t0.py, line 1: the prompts' facts must be a"):
        read_t0_types(clone)
    path.unlink()
    with pytest.raises(UserError, match=r"needs flan/v2/constants_t0.py in .*give a clone of FLAN"):
        read_t0_types(clone)
    gin.bind_parameter("FlanConfig.clone", None)
    with pytest.raises(
        UserError, match=r"set FlanConfig.clone \(or Run.data\['flan'\]\) to a clone"
    ):
        find("reasoning", reasoning)
    gin.bind_parameter("FlanConfig.wrapped", ("t5",))
    with pytest.raises(UserError, match=r"wrapped has 't5'; FLAN v2 has templates for prompts"):
        find("reasoning", reasoning)


def test_templates_that_are_not_there_are_named(clone, write_bench):
    path = clone / "flan/v2/templates.py"
    path.write_text(flan_clone.TEMPLATES.replace('"natinst_v2": [("', '"other": [("'))
    content = {"Definition": ["Do."], "Instances": [{"input": "a", "output": ["b"]}]}
    with pytest.raises(UserError, match=r"has no templates 'natinst_v2' for superni; give a whole"):
        find("superni", write_bench({"task1_x": content}))


def test_the_recipe_wraps_all_three(clone):
    read_settings(["gin/prompts/flan_palm.gin"], [])
    assert set(gin.query_parameter("FlanConfig.wrapped")) == set(COLLECTIONS)


def test_real_data_is_wrapped(clone, real_data):
    data = {"reasoning": "reasoning", "superni": "super_natural_instructions"}
    data = {name: str(real_data / folder) for name, folder in data.items()}
    sources = {s.name: s for s in find_sources(data, Manifest.load())}
    tasks = [s for name, s in sources.items() if "validation" in s.splits][:12]
    for source in (sources["reasoning/ecqa"], *tasks):
        drops = Drops()
        found = prompts(source, drops, most=250)
        assert found
        few = [(e, shown) for e, _, shown in found if e.form.shots]
        if len(found) > 40:
            assert 0.1 < len(few) / len(found) < 0.8
            numbers = {2, 3, 5} if source.name.startswith("reasoning/") else {2}
            assert {len(shown) for _, shown in few} == numbers
        whole = {"reasoning": "chain_of_thought", "superni": "output"}
        for example, prompt, _ in found:
            slot = whole[example.benchmark]
            assert example.slots[slot].strip() in prompt.target
