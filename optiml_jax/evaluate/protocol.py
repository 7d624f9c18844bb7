"""How a task is asked and scored, where it wants something else than the run's settings.

The split manifest sets it per task; records keep it, so that tables can say how a score came about.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What a task may want of its own.

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
    max_new_tokens: int | None = None
    joiner: str = " "
    stop: tuple[str, ...] = ()
    samples: int = 0
    temperature: float = 0.7
