"""FLAN v2's prompts around the examples of other collections (google-research/FLAN, flan/v2).

Super-NaturalInstructions' definition and instance, PromptSource's rendered prompt, and question,
reasoning and answer of a chain-of-thought set fill the slots of FLAN v2's templates, which are read
from the user's clone of FLAN. Training and validation examples are wrapped; test examples and the
demonstrations of evaluations stay as their readers make them. `v2.yaml` has the shares.
"""

import ast
import dataclasses
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from optiml_jax.data.example import Drops, Example, TaskSource
from optiml_jax.data.sampling import RowSample
from optiml_jax.errors import UserError
from tasks.flan.prompts_v2 import EXAMPLE, PromptsV2, prompts_v2
from tasks.flan.templates import FlanConfig, Template, assigned, expect, parsed
from tasks.flan.templates_v2 import FACTS, NIV2, read_templates_v2, usable

logger = logging.getLogger(__name__)

_METADATA = "flan/v2/constants_t0.py"
_QUESTION, _CHOICE, _SEPARATED = (
    "t0_question_answer",
    "t0_multiple_choice",
    "t0_multiple_choice_separated_options",
)
# Slots of a collection's templates that hold what is predicted.
_TARGETS = {
    "promptsource": {"answer"},
    "superni": {"output"},
    "reasoning": {"chain_of_thought", "answer"},
}
_SLOTS = {
    "promptsource": {"question", "answer", "options_"},
    "superni": {"Definition", "input", "output", *EXAMPLE},
    "reasoning": {"question", "chain_of_thought", "answer"},
}
Values = tuple[str, dict[str, str], tuple[str, ...], str]  # pattern, slots, options, family

# Patterns that every task of a collection needs; a set of reasoning has its own.
_PATTERNS = {
    "promptsource": (_QUESTION, _CHOICE, _SEPARATED),
    "superni": (NIV2,),
    "reasoning": (),
}
_SETS = (("cot_", "cot_input_inversion_"), ("stream_", "stream_input_inversion_"))


class Wrapper:
    """Puts the training prompts of FLAN v2 into the tasks of the collections that are to have them.

    Args:
      data: benchmark -> folder, as `Run.data`.

    Raises:
      UserError: `FlanConfig.wrapped` names another collection, or there is no clone of FLAN with
        the files of its v2.
    """

    def __init__(self, data: Mapping[str, str]):
        self._config = FlanConfig()
        unknown = set(self._config.wrapped) - {*_TARGETS}
        if unknown:
            raise UserError(
                f"FlanConfig.wrapped has {sorted(unknown)[0]!r}; FLAN v2 has templates for "
                f"{', '.join(sorted(_TARGETS))}"
            )
        self._wanted = [b for b in data if _collection(b) in self._config.wrapped]
        if not self._wanted:
            return
        place = self._config.clone or data.get("flan")
        if not place:
            raise UserError(
                "FlanConfig.wrapped needs FLAN v2's templates: set FlanConfig.clone (or "
                "Run.data['flan']) to a clone of https://github.com/google-research/FLAN"
            )
        self._clone = pathlib.Path(os.path.expandvars(place)).expanduser()
        self._read = read_templates_v2(self._clone, "FlanConfig.wrapped")
        self._types: dict[str, str] = {}
        if any(_collection(b) == "promptsource" for b in self._wanted):
            self._types = read_t0_types(self._clone)
        self._shared: dict[tuple[str, str], PromptsV2 | None] = {}

    def __call__(self, sources: Sequence[TaskSource], benchmark: str) -> list[TaskSource]:
        """The tasks of a benchmark, wrapped if it is one of those; others as they are."""
        if benchmark not in self._wanted:
            return list(sources)
        collection = _collection(benchmark)
        for name in _PATTERNS[collection]:
            if self._of_pattern(collection, name, "") is None:
                raise UserError(
                    f"FlanConfig.wrapped: flan/v2/templates.py in {self._clone} has no templates "
                    f"{name!r} for {benchmark}; give a whole clone of FLAN"
                )
        wrapped = [self._wrapped(source, collection) for source in sources]
        pairs = zip(sources, wrapped, strict=True)
        without = [s.name for s, w in pairs if w is s and "train" in s.splits]
        if without:
            shown = ", ".join(without[:5]) + (" ..." if len(without) > 5 else "")
            logger.warning(
                "%d of %d %s tasks keep their own prompts, since FLAN v2 has no templates for "
                "them: %s",
                *(len(without), len(sources), benchmark, shown),
            )
        return wrapped

    def _wrapped(self, source: TaskSource, collection: str) -> TaskSource:
        prompts = self._prompts(source, collection)
        if not prompts or "train" not in source.splits:
            return source
        task = WrappedTask(
            source=source,
            prompts=prompts,
            types=self._types_of(source) if collection == "promptsource" else {},
            values=_VALUES[collection],
            seed=self._config.seed,
        )
        marks = {name: found.fingerprint for name, found in prompts.items()}
        about = {"prompts": marks, "types": task.types, "seed": task.seed}
        return dataclasses.replace(
            source, read=task.read, settings={**source.settings, "flan_v2": about}
        )

    def _prompts(self, source: TaskSource, collection: str) -> dict[str, PromptsV2]:
        """Pattern -> its prompts, of the patterns that the task needs."""
        names = [(name, "") for name in _PATTERNS[collection]]
        if collection == "reasoning":
            stem = source.name.split("/", 1)[1]
            names = [(kind + stem, inverse + stem) for kind, inverse in _SETS]
        found = {name: self._of_pattern(collection, name, inverse) for name, inverse in names}
        return {name: prompts for name, prompts in found.items() if prompts is not None}

    def _of_pattern(self, collection: str, name: str, inverse: str) -> PromptsV2 | None:
        """One object for all tasks of a pattern."""
        if (collection, name) not in self._shared:
            lists = self._read.option_lists if name == _SEPARATED else None
            self._shared[collection, name] = prompts_v2(
                collection,
                self._usable(collection, name, inverted=False),
                lists,
                self._usable(collection, inverse, inverted=True) if self._config.inverted else (),
            )
        return self._shared[collection, name]

    def _usable(self, collection: str, pattern: str, inverted: bool) -> list[Template]:
        templates = self._read.patterns.get(pattern, [])
        return usable(templates, _TARGETS[collection], (), _SLOTS[collection], inverted)

    def _types_of(self, source: TaskSource) -> dict[str, str]:
        """The types of the prompts of a data set, by P3's names."""
        start = p3_name(source.name.split("/", 1)[1], "")
        return {name: kind for name, kind in self._types.items() if name.startswith(start)}


@dataclasses.dataclass(frozen=True)
class WrappedTask:
    """A task whose training examples FLAN v2's templates write.

    Attributes:
      source: the task as its reader made it.
      prompts: pattern -> its prompts.
      types: of PromptSource's prompts, P3's name -> pattern.
      values: from an example and the task to its pattern, the texts by slot, and the options that
        are listed apart from the question.
      seed: of the draws.
    """

    source: TaskSource
    prompts: dict[str, PromptsV2]
    types: dict[str, str]
    values: Callable[..., Values]
    seed: int

    def read(self, split: str, drops: Drops, sample: RowSample | None = None) -> Iterator[Example]:
        """As the task's own `read`; see above."""
        arguments = (sample,) if self.source.samples_rows else ()
        for example in self.source.read(split, drops, *arguments):
            yield example if split == "test" else self._shown(example, drops)

    def _shown(self, example: Example, drops: Drops) -> Example:
        pattern, texts, options, family = self.values(example, self, drops)
        prompts = self.prompts[pattern]
        key = f"{self.seed}\0{example.task}\0{example.prompt_id}\0{example.example_id}"
        template = prompts.drawn(key, texts)
        fields = prompts.shown(template, texts, options, example.task, key, family)
        fields["prompt_id"] = f"{example.prompt_id}/{template.id}"
        return dataclasses.replace(example, **fields)


def _superni(example: Example, task: WrappedTask, drops: Drops) -> Values:
    texts = {
        "Definition": example.instruction,
        "input": example.input,
        "output": example.target,
    }
    explained = example.meta["explained"]
    if explained and explained[0] != example.input:
        texts |= dict(zip(EXAMPLE, explained, strict=True))
    return NIV2, texts, (), ""


def _reasoning(example: Example, task: WrappedTask, drops: Drops) -> Values:
    """Question and reasoning as upstream's `simple_cot_tsv` reads them."""
    (pattern,) = task.prompts
    record = dict(example.meta)
    if task.source.settings["forms"]["train"] == "tsv":
        record = {name: text.replace("\\n", "\n") for name, text in record.items()}
    texts = {
        "question": record["question"].strip(),
        "answer": record["answer"].strip(),
        "chain_of_thought": record["rationale"].strip(),
    }
    return pattern, texts, (), ""


def _promptsource(example: Example, task: WrappedTask, drops: Drops) -> Values:
    """The prompt on one line, as upstream's `t0` has it; demonstrations have the same prompt."""
    question = example.input.replace("\n", " ").strip()
    answer = example.target.replace("\n", "").strip()
    options = tuple(option.replace("\n", "").strip() for option in example.options or ())
    pattern = task.types.get(p3_name(example.source_dataset, example.meta["template"]))
    if pattern is None:
        drops["warning: FLAN v2 does not have the prompt, only its form"] += 1
        listed = example.meta["choices_in_prompt"]
        pattern = (_CHOICE if listed else _SEPARATED) if options else _QUESTION
    if pattern == _SEPARATED and answer not in options:
        pattern = _QUESTION
    apart = options if pattern == _SEPARATED else ()
    return pattern, {"question": question, "answer": answer}, apart, example.prompt_id


_VALUES = {"superni": _superni, "reasoning": _reasoning, "promptsource": _promptsource}


def p3_name(dataset: str, template: str) -> str:
    """P3's name of a prompt, e.g. `wiki_qa_Is_This_True_` of wiki_qa's "Is This True?"."""
    rule = FACTS["p3_names"]
    text = f"{dataset.replace('/', '_')}_{template}"
    return re.sub(rule["characters"], rule["put"], text)


def read_t0_types(clone: pathlib.Path) -> dict[str, str]:
    """P3's name of a prompt -> the pattern that FLAN v2 has for it; only of what FLAN lacks.

    Raises:
      UserError: the file is missing, or is not a literal dictionary of such entries.
    """
    path = clone / _METADATA
    if not path.is_file():
        raise UserError(f"FlanConfig.wrapped needs {_METADATA} in {clone}; give a clone of FLAN")
    node = assigned(path, parsed(path), "T0_TRAIN_TASK_METADATA")
    try:
        content = ast.literal_eval(node)
    except ValueError:
        content = None
    expect(path, node, isinstance(content, dict), "the prompts' facts must be a literal dictionary")
    types = {}
    for name, facts in content.items():
        good = isinstance(name, str) and isinstance(facts, dict) and "in_flan" in facts
        expect(path, node, good and "task_type" in facts, f"{name!r} must have in_flan, task_type")
        if not facts["in_flan"] and facts["task_type"] in (_QUESTION, _CHOICE, _SEPARATED):
            types[name.removeprefix(FACTS["p3_prefix"])] = facts["task_type"]
    return types


def _collection(benchmark: str) -> str:
    return benchmark.removeprefix("demo_")
