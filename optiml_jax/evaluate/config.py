"""How tasks are evaluated; needs neither JAX nor SeqIO, so every verb can read a gin file."""

import dataclasses

from optiml_jax.errors import UserError
from optiml_jax.settings import Positive, Seed, configurable


@configurable
@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How tasks are evaluated.

    Attributes:
      delimiter: between an input and its answer, fixed for all prompts (training may draw it).
      separator: before and after demonstrations; None: that of training, the first of several.
      max_new_tokens: where generation stops without eos, eos included.
      max_examples: (example, prompt) pairs per task, chosen by hash; None is all.
      tokens_per_batch: rows x length of a batch of the model.
      instances_per_round: instances that go through the model together; a round that was
        interrupted is done again.
      seed: of the choice of `max_examples`.
    """

    delimiter: str = "\nOutput:"
    separator: str | None = None
    max_new_tokens: Positive = 256
    max_examples: Positive | None = None
    tokens_per_batch: Positive = 8192
    instances_per_round: Positive = 2048
    seed: Seed = 1234

    def __post_init__(self):
        if self.separator == "":
            raise UserError("EvalConfig.separator is empty; give a string, or None")
