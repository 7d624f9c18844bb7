"""Rebuilds tests/goldens: `python tools/make_golden.py` (needs torch and transformers).

Goldens are results of other programs, or of this one at an earlier time: Hugging Face's logits of
small models, and the sharding of every parameter of every size. Check the difference before you
commit it.
"""

import pathlib
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "goldens"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "model"), str(ROOT / "tests" / "sharding")]

import llama_cases  # noqa: E402
import opt_cases  # noqa: E402
import sharding_dump  # noqa: E402


def main() -> None:
    GOLDENS.mkdir(exist_ok=True)
    (GOLDENS / "shardings.txt").write_text(sharding_dump.dump())
    for module, prefix in ((opt_cases, "opt_"), (llama_cases, "")):
        for name, case in module.CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                module.write_folder(pathlib.Path(folder), case)
                tokens = module.random_tokens(case)
                outputs = module.torch_outputs(pathlib.Path(folder), tokens)
            np.savez_compressed(GOLDENS / f"{prefix}{name}.npz", **outputs)


if __name__ == "__main__":
    main()
