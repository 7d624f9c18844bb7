"""How tasks are evaluated; needs neither JAX nor SeqIO, so every verb can read a gin file."""

import dataclasses

import gin


@gin.configurable
@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How tasks are evaluated.

    Attributes:
      delimiter: between an input and its answer, fixed for all prompts (training may draw it).
      max_new_tokens: where generation stops without eos, eos included.
      max_examples: (example, prompt) pairs per task, chosen by hash; None is all.
      tokens_per_batch: rows x length of a batch of the model.
      instances_per_round: instances that go through the model together; a round that was
        interrupted is done again.
      seed: of the choice of `max_examples`.
    """

    delimiter: str = "\nOutput:"
    max_new_tokens: int = 256
    max_examples: int | None = None
    tokens_per_batch: int = 8192
    instances_per_round: int = 2048
    seed: int = 1234
