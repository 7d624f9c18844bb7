"""Which of FLAN v2's templates an example is shown with in training, and what becomes of it.

Upstream registers a task for each kind of prompt and mixes them; here each example has one kind, in
the same shares, and one template of it, drawn by hashes.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from optiml_jax.data.hashed_draws import choice, draw
from optiml_jax.data.training_prompts import fill, slots
from tasks.flan.dialogs import ANSWER, DIALOG, DialogForms
from tasks.flan.option_lists import OptionLists
from tasks.flan.templates import Template
from tasks.flan.templates_v2 import FACTS, INLINE, MIX, ZERO_SHOT

EXAMPLE = ("ex_input", "ex_output", "ex_explanation")  # slots of an example within the text

Kinds = tuple[tuple[tuple[Template, ...], ...], ...]  # groups of kinds of templates


@dataclasses.dataclass(frozen=True)
class PromptsV2:
    """The training prompts of one pattern.

    Attributes:
      kinds: groups of kinds, each with its templates; groups are equally likely, and within a group
        its kinds.
      inverted: the same of the inverted set of a chain-of-thought or dialogue set.
      option_lists: of zero-shot prompts that list options apart from the question; None: there are
        no such prompts.
      dialog_forms: of zero-shot prompts that list the turns of a dialogue.
    """

    kinds: Kinds
    inverted: Kinds = ()
    option_lists: OptionLists | None = None
    dialog_forms: DialogForms | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of everything that decides what examples become."""
        facts = {key: FACTS[key] for key in ("inverted_sets", "mix_separators", "p3_names")}
        text = repr((self.kinds, self.inverted, self.option_lists, facts))
        text += repr(self.dialog_forms) if self.dialog_forms else ""
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def drawn(self, key: str, values: Mapping[str, str]) -> Template:
        """The template of the example that `key` names and whose slots have the `values`."""
        weight = FACTS["inverted_sets"] if self.inverted else 0.0
        inverted = draw(f"{key}\0inverted") / 2**64 * (1 + weight) < weight
        group = choice(self.inverted if inverted else self.kinds, f"{key}\0group")
        if not values.keys() >= set(EXAMPLE):
            group = [kind for kind in group if kind[0].kind != INLINE] or group
        return choice(choice(group, f"{key}\0kind"), f"{key}\0template")

    def shown(
        self,
        template: Template,
        values: Mapping[str, str],
        options: tuple[str, ...],
        task: str,
        key: str,
        family: str = "",
        turns: Sequence[str] = (),
    ) -> dict[str, Any]:
        """The fields of an Example that its template makes.

        Args:
          template: one of these.
          values: texts by slot.
          options: of the example; () if it has none that are listed apart from the question.
          task: names the separator of a mix.
          key: names the example.
          family: see `PromptForm`.
          turns: of a dialogue before the one to predict; `values` has them as text.
        """
        listed = "OPTIONS:\n- " + "\n- ".join(options) if options else ""
        plain = {**values, "options_": listed, "options_str": listed}
        filled, answers = plain, options
        if template.kind == ZERO_SHOT and options and "options_" in slots(template.source):
            block, answers = self.option_lists.drawn(options, key) or (listed, options)
            filled = plain | {"options_": block}
            if plain.get(ANSWER) in options:
                filled[ANSWER] = answers[options.index(plain[ANSWER])]
        if template.kind == ZERO_SHOT and turns:
            filled = filled | {DIALOG: self.dialog_forms.drawn(turns, key)}
        target = fill(template.target, filled).strip()
        form = template.form
        if template.kind == MIX:
            name = f"{task}\0{template.pattern}\0{family}"
            separator = choice(FACTS["mix_separators"], f"{name}\0separator")
            form = dataclasses.replace(form, separator=separator)
        return {
            "prompt_id": template.id,
            "instruction": fill(template.head, filled).strip(),
            "input": fill(template.source, filled).strip(),
            "target": target,
            "references": (target,),
            "options": answers if target in answers else None,
            "options_text": "",
            "form": dataclasses.replace(form, family=family) if family else form,
            "slots": plain,
        }


def prompts_v2(
    collection: str,
    templates: Sequence[Template],
    option_lists: OptionLists | None,
    inverted: Sequence[Template] = (),
    dialog_forms: DialogForms | None = None,
) -> PromptsV2 | None:
    """The prompts of a pattern in the kinds that FLAN v2 gives a collection; None: it has none.

    Args:
      collection: a key of v2.yaml's `kinds`.
      templates: those of the pattern that are used.
      option_lists: given if options are listed apart from the question.
      inverted: templates of the inverted set.
      dialog_forms: given if the prompts list the turns of dialogues.
    """
    kinds, other = (
        tuple(
            tuple(kinds)
            for names in FACTS["kinds"][collection]
            if (kinds := [kind for name in names if (kind := _of_kind(group, name))])
        )
        for group in (templates, inverted)
    )
    return PromptsV2(kinds, other, option_lists, dialog_forms) if kinds else None


def _of_kind(templates: Sequence[Template], kind: str) -> tuple[Template, ...]:
    """The templates of a kind; demonstrations have the texts of no others."""
    chosen = [template for template in templates if template.kind == kind]
    texts = {(template.source, template.target) for template in chosen}
    return tuple(
        dataclasses.replace(
            template,
            form=dataclasses.replace(
                template.form,
                texts=tuple(t for t in template.form.texts if (t.source, t.target) in texts),
            ),
        )
        for template in chosen
    )
