#!/usr/bin/env bash
# Measure this machine's GPUs, in the order of worth, each part written as it ends: the tests that need a GPU; train.py in
# bf16, compiled too; five other loops on the same images (benchmarks/peers.py); what each lever is worth; a profile;
# photographs; evaluate and predict; an all-reduce of one rank; with several GPUs weak and strong scaling and the bandwidth
# of the all-reduce; the other precisions. Parts that would begin after nine minutes (--minutes) are left out and named.
# Without a GPU, or with --smoke, the same on one and two CPU ranks with tiny sizes: a test of this script, no figures.
#
#     benchmarks/gpu.sh
#     benchmarks/gpu.sh --wheels DIR                 # installs lightning and timm from this folder where they are missing
#     benchmarks/gpu.sh --out /tmp/gpu --smoke
#
# Writes gpu.json, gpu.md and gpu_operators.txt in benchmarks/results (or --out): send us gpu.json. The exit code is 0, or 1
# where a part failed; the reason is in gpu.json.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$here/.venv/bin/python
if [[ ! -x $python ]]; then
  python=python3
fi
exec "$python" "$here/benchmarks/gpu.py" "$@"
