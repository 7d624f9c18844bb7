"""A clone of FLAN with its v2, in the form of google-research/FLAN; all wordings are our own.

`exec` of the same text, which Python then understands by itself, is what tests compare with.
"""

import pathlib
from typing import Any

TEMPLATES = """
import copy
import dataclasses
from flan.v2 import flan_templates_branched as flan_templates

PATTERNS = {
    "parity": [
        ("Choose from options: is {number} odd "
         "or even?\\n\\n{options_}", "{answer}"),
        ("Name an {answer} number.", "{number}"),
    ],
    "only_v2": [("{number}?", "{answer}")],
    "cot_ecqa": [
        ("{question} Reason aloud:", "{chain_of_thought}\\nHence {answer}."),
        ("Slowly now. {question}\\n", "{chain_of_thought} So it is {answer}."),
    ],
    "stream_aqua": [("{question} Muse:", "{chain_of_thought} Thus {answer}.")],
    "all_inverted": [
        ("Why {answer}? {question}", "Since {chain_of_thought}"),
        ("{chain_of_thought} That answers what?", "{question}\\n{answer}"),
    ],
    "t0_question_answer": [("{question}\\n", "{answer}"), ("Q:{question}\\nA:", "{answer}")],
    "t0_multiple_choice_separated_options": [
        ("{question}\\n{options_}", "{answer}"),
        ("{options_}\\n\\n{question}\\nSay:", "{answer}"),
    ],
    "talk": [("{dialog_}\\n", "{answer}"), ("Go on: {dialog_}", "{answer}")],
    "talk_input_inversion": [("What led to {answer}?", "{dialog_}")],
    "natinst_v2": [("{Definition}\\n\\n{input}", "{output}"),
                   ("Do this: {Definition}\\nQ: {input}\\nA: ", "{output}")],
}
PATTERNS["t0_multiple_choice"] = PATTERNS["t0_question_answer"]
PATTERNS["qrecc"] = PATTERNS["talk"]
PATTERNS["wiki_dialog"] = PATTERNS["talk"]
PATTERNS["task_master"] = PATTERNS["talk"]
PATTERNS["wiki_dialog_input_inversion"] = PATTERNS[
    "talk_input_inversion"]
PATTERNS["cot_input_inversion_ecqa"] = PATTERNS["all_inverted"]


@dataclasses.dataclass
class FewShotPattern:
  inputs: str
  targets: str
  inputs_prefix: str = ""
  targets_prefix: str = ""
  x_y_delimiter: str = "\\n\\n"
  example_separator: str = "\\n\\n\\n"
  final_suffix: str = ""
  input_pattern: str = "{{inputs}}{final_suffix}"
  in_template_mix: bool = True


FEWSHOT_PATTERNS = {
    "parity": [
        FewShotPattern(
            inputs="{number}"
            " | {options_}",
            targets="{answer}",
            inputs_prefix="Q: ",
            targets_prefix="A: ",
            x_y_delimiter="\\n**\\n",
            example_separator="\\n##\\n"),
        FewShotPattern(inputs="number {number} ({options_})", targets="It is {answer}"),
        FewShotPattern(
            inputs="not in the mix {number}",
            targets="{answer}",
            in_template_mix=False),
        FewShotPattern(inputs="odd one: {answer}", targets="{number}"),
        FewShotPattern(inputs="{number} in {base}", targets="{answer}"),
    ],
    "cot_ecqa": [
        FewShotPattern(
            inputs="{question}",
            targets="Thoughts: {chain_of_thought}\\nHence {answer}.",
            inputs_prefix="Q-- ",
            targets_prefix="A-- ",
            x_y_delimiter="\\n",
            example_separator="\\n==\\n"),
    ],
    "cot_input_inversion_ecqa": [
        FewShotPattern(inputs="{chain_of_thought}", targets="{question}", x_y_delimiter="\\n"),
    ],
    "stream_aqua": [FewShotPattern(inputs="{question}", targets="{chain_of_thought} {answer}")],
    "t0_question_answer": [
        FewShotPattern(
            inputs="{question}",
            targets="Ans: {answer}",
            x_y_delimiter="\\n",
            example_separator="\\n\\n"),
    ],
    "t0_multiple_choice": [
        FewShotPattern(inputs="{question}", targets="{answer}", x_y_delimiter="\\n")],
    "t0_multiple_choice_separated_options": [
        FewShotPattern(
            inputs="{question}\\n{options_}",
            targets="{answer}",
            inputs_prefix="Ques: ",
            targets_prefix="Ans: ",
            x_y_delimiter="\\n"),
        FewShotPattern(
            inputs="{options_}\\n{question}", targets="{answer}", x_y_delimiter="\\n-\\n"),
    ],
    "talk": [
        FewShotPattern(
            inputs="{dialog_} ",
            targets="{answer}",
            inputs_prefix="Heard: ",
            x_y_delimiter="\\n",
            example_separator="\\n\\n"),
        FewShotPattern(inputs="Next? {dialog_}", targets="Then: {answer}", targets_prefix="! "),
    ],
    "talk_input_inversion": [
        FewShotPattern(inputs="Before {answer}", targets="{dialog_}", targets_prefix="Was: "),
    ],
    "natinst_v2": [
        FewShotPattern(
            input_pattern="{{Definition}}\\n\\n{{inputs}}{final_suffix}",
            inputs="{input}",
            targets="{output}",
            inputs_prefix="In: ",
            targets_prefix="Out: ",
            x_y_delimiter="\\n",
            example_separator="\\n--\\n"),
        FewShotPattern(
            input_pattern="TASK {{Definition}}\\n{{inputs}}{final_suffix}",
            inputs="Consider {input}",
            targets="Result: {output}",
            x_y_delimiter="\\n\\n",
            example_separator="\\n\\n\\n",
            in_template_mix=False),
    ],
}
FEWSHOT_PATTERNS["qrecc"] = FEWSHOT_PATTERNS["talk"]
FEWSHOT_PATTERNS["wiki_dialog"] = FEWSHOT_PATTERNS["talk"]
FEWSHOT_PATTERNS["task_master"] = FEWSHOT_PATTERNS["talk"]
FEWSHOT_PATTERNS["wiki_dialog_input_inversion"] = FEWSHOT_PATTERNS["talk_input_inversion"]
FEWSHOT_PATTERNS_NO_OPTIONS = copy.deepcopy(FEWSHOT_PATTERNS)

INLINE_FS_PATTERNS = {
    "natinst_v2": [
        ("{Definition}\\nFor {ex_input} say {ex_output}: {ex_explanation}\\nFor {input} say",
         "{output}"),
    ],
}

OPT_START_STRING_CANDIDATES = ["", "WHICH:", "One of these."]
ROMANS = ["I", "II", "III", "IV"]
OPT_ITEM_NAME_CANDIDATES = [
    ["\\n ~ " for _ in range(26)],
    [" <" + x.lower() + "> " for x in ROMANS],
    ["\\n(" + chr(x) + "). " for x in range(ord("a"), ord("z") + 1)],  # \\n(A).
    [" " + str(x) + ". " for x in range(1, 27)],
]
OPT_ITEM_END_STR_CANDIDATES = [["" for _ in range(26)], [";" for _ in range(26)]]

DIALOG_START_STRING_CANDIDATES = ["", "TALK:" "Talk:"]
DIALOG_ITEM_NAME_CANDIDATES = [
    ["\\n ~ " for _ in range(1000)],
    [
        "\\nOne) " if x % 2 == 0 else "\\nTwo) "
        for x in range(1000)
    ],
]
DIALOG_ITEM_END_STR_CANDIDATES = [["" for _ in range(1000)], [";" for _ in range(1000)]]
"""
FIRST = """
PATTERNS = {"parity": [("Is {number} odd or even? {options_}\\nSay", "{answer}")]}
"""
METADATA = """
T0_TRAIN_TASK_METADATA = {
    't0_task_adaptation:bugs_Is_it_one_': {
        'in_flan': False, 'task_type': 't0_multiple_choice_separated_options'},
    't0_task_adaptation:bugs_pick': {'in_flan': False, 'task_type': 't0_multiple_choice'},
    't0_task_adaptation:bugs_tell': {'in_flan': False, 'task_type': 't0_question_answer'},
    't0_task_adaptation:known_to_flan': {'in_flan': True, 'task_type': 't0_question_answer'},
    't0_task_adaptation:bugs_tell_score_eval': {
        'in_flan': False, 'task_type': 't0_multiple_choice_score_eval'},
}
"""


def write_clone(root: pathlib.Path) -> pathlib.Path:
    (root / "flan/v2").mkdir(parents=True)
    (root / "flan/v2/templates.py").write_text(TEMPLATES)
    (root / "flan/v2/flan_templates_branched.py").write_text(FIRST)
    (root / "flan/v2/constants_t0.py").write_text(METADATA)
    return root


def executed() -> dict[str, Any]:
    """What Python makes of the file of templates."""
    names: dict[str, Any] = {"__name__": __name__}
    text = TEMPLATES.replace("from flan.v2 import flan_templates_branched as flan_templates", "")
    exec(text, names)
    return names
