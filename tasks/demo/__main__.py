"""`python -m tasks.demo --out=build/demo`: writes the demo bench (see build.py)."""

from optiml_jax.quiet import held_stderr

if __name__ == "__main__":
    with held_stderr():
        from tasks.demo.build import main

        main()
