"""`python -m tasks.demo --out=build/demo`: writes the demo bench (see build.py)."""

from tasks.demo.build import main

if __name__ == "__main__":
    main()
