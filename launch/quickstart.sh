#!/usr/bin/env bash
# The whole pipeline on the demo bench: build it, prepare, plan, write the page of prompts, train,
# evaluate the model before and after training, report. Run it again and it continues where it
# stopped. Arguments go to the verbs, which run in one process and so import everything once.
set -euo pipefail
. "$(dirname "$0")/install.sh"

run() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }
gin=(--gin_file=gin/runs/quickstart.gin "$@")

run python -m tasks.demo --out=build/demo
run optiml prepare plan inspect train evaluate report "${gin[@]}" \
  --gin.Inspect.html=runs/quickstart/inspect.html "--gin.Evaluate.checkpoint=('init', 'latest')"

cat <<TEXT

What next:
  runs/quickstart/inspect.html              every task with its prompts, and the mixture, in a browser
  optiml splits --gin_file=gin/runs/quickstart.gin      which task is trained on, and held out how
  tensorboard --logdir runs                 the curves of all runs, their settings beside their scores
  runs/quickstart/report/report.md          all tables; records of every answer are in evaluation/
  a longer run, verb by verb (plan, train, evaluate, report) in a folder of its own:
    optiml plan --gin_file=gin/runs/quickstart.gin --gin.Run.run_dir=runs/longer --gin.TrainConfig.num_steps=4000
  README.md, "Your own data" and "A real OPT checkpoint"
The programs are in $VENV/bin.
TEXT
