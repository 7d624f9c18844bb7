"""How a task is prompted and scored, where this differs from the run's settings.

The split manifest sets it per task; records keep it, so that tables can say how a score came about.
"""

import dataclasses

from optiml_jax.errors import UserError
from optiml_jax.settings import NotNegative, NotNegativeFloat, Positive, convert_fields

RULE_NAMES = ("sum", "mean", "chars", "bytes", "unconditional", "sum_eos")  # of records.RULES


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings that a task may override.

    Attributes:
      rule: how candidates are scored, a name of `records.RULES`.
      delimiter, separator, max_new_tokens: in the place of the run's (`EvalConfig`,
        `PromptConfig`); None: the run's.
      joiner: between a prompt and each of its candidates.
      stop: strings at which an answer ends; they are not part of it.
      samples: self-consistency: so many answers are drawn and the majority's counts; 0: one greedy
        answer.
      temperature: of these draws.
    """

    rule: str = "sum"
    delimiter: str | None = None
    separator: str | None = None
    max_new_tokens: Positive | None = None
    joiner: str = " "
    stop: tuple[str, ...] = ()
    samples: NotNegative = 0
    temperature: NotNegativeFloat = 0.7

    def __post_init__(self):
        convert_fields(self, type(self).__name__)  # YAML and JSON give lists, and anything else
        if self.rule not in RULE_NAMES:
            raise UserError(f"unknown score rule {self.rule!r}; known: {', '.join(RULE_NAMES)}")
        if self.samples and not self.temperature:
            raise UserError("samples need a temperature above 0, not 0")
        if not all(self.stop):
            raise UserError(f"stop must be a list of strings with text, not {self.stop!r}")
