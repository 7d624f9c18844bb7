"""OPT-IML rebuilt: SeqIO tasks, a sharded decoder and trainer, an evaluator of three levels."""

from optiml_jax.quiet import quiet_tensorflow

quiet_tensorflow()
