#!/usr/bin/env bash
# Train what only a GPU makes cheap, on three seeds each: candidates for the reference on held-out images, then
# reference.yaml, quick.yaml, lecture.yaml, long.yaml, and photos.yaml where a folder of photographs is named. What is finished is not
# run again, and a run that was stopped goes on. Summaries and a table: docs/results/gpu. Time and accuracy are not measured yet.
#
#     benchmarks/gpu_runs.sh --data.dataset path/to/cifar10
#     benchmarks/gpu_runs.sh --candidates lines.txt --photos path/to/photographs --data.dataset path/to/cifar10
#
# The exit code is 0, or that of the run that failed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$here/.venv/bin/python
if [[ ! -x $python ]]; then
  python=python3
fi
exec "$python" "$here/benchmarks/recipes.py" --gpu "$@"
