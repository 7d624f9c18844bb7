"""Numbers in messages."""

from optiml_jax.words import counted


def test_one_is_in_the_singular():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]
    assert counted(1204, "training task") == "1,204 training tasks"
    assert [counted(n, "study", "studies") for n in (1, 3)] == ["1 study", "3 studies"]
