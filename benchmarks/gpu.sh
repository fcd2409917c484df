#!/usr/bin/env bash
# Measure this machine's GPUs: images a second, MFU and seconds of an epoch by precision, with and without compilation,
# on 1 to all GPUs with 512 images each and with 512 together; bandwidth of the all-reduce and its exposed time.
# Without a GPU, or with --smoke, the same on one and two CPU ranks with tiny sizes: a test of this script, no figures.
#
#     benchmarks/gpu.sh
#     benchmarks/gpu.sh --out /tmp/gpu --smoke
#
# Expect: five minutes on one GPU (an H200), more on several, a table at the end, and gpu.json and gpu.md in benchmarks/results (or --out):
# send us gpu.json. The exit code is 0, or 1 with the output of the run that failed.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$here/.venv/bin/python
if [[ ! -x $python ]]; then
  python=python3
fi
exec "$python" "$here/benchmarks/gpu.py" "$@"
