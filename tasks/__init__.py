"""The bench: readers of the public collections, the split manifest, mixtures."""

import optiml_jax  # noqa: F401 - first of all: it makes TensorFlow quiet
