#!/usr/bin/env bash
# The whole line on the demo bench: build it, prepare, plan, evaluate an untrained model, train,
# evaluate again, report. Run it again and it continues where it stopped. Arguments go to every verb.
set -euo pipefail
. "$(dirname "$0")/install.sh"

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
gin=(--gin_file=gin/runs/quickstart.gin "$@")

run python -m tasks.demo.build --out=build/demo
run optiml prepare "${gin[@]}"
run optiml plan "${gin[@]}"
run optiml evaluate "${gin[@]}" --gin.Evaluate.checkpoint=init
run optiml train "${gin[@]}"
run optiml evaluate "${gin[@]}"
run optiml report "${gin[@]}"

cat <<'TEXT'

What next:
  tensorboard --logdir runs/quickstart                      the curves of this run
  optiml train --gin_file=gin/runs/quickstart.gin --gin.TrainConfig.num_steps=1000 --gin.Run.run_dir=runs/longer
  README.md, "Your own data" and "A real OPT checkpoint"
TEXT
