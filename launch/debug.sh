#!/usr/bin/env bash
# One process, a few batches, nothing sent anywhere: does this configuration work at all? 20 s on a laptop's CPU.
#
#     launch/debug.sh                                          # synthetic images
#     launch/debug.sh --config recipes/lecture.yaml            # the same few batches of a recipe
#
# Any option of train.py may be given and wins over the ones below.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
data=(--data.dataset synthetic)
[[ " $*" == *" --config"* ]] && data=()
options=(${data[@]+"${data[@]}"} --data.batch-size 16 --data.limit 64 --max-steps 3 --log.every-steps 1
  --wandb.mode disabled --out-dir "$scratch/run" "$@")
PYTHONPATH=$here${PYTHONPATH:+:$PYTHONPATH} python -m alexnet_dist.doctor --quiet --num-processes 1 "${options[@]}" ||
  exit $?
accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no --quiet "$here/train.py" \
  "${options[@]}"
