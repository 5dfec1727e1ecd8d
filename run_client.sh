#!/usr/bin/env bash
# bash run_client.sh RANK RUN_ID [further words]: take part in a run as client RANK (from 1).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
rank=${1:?usage: bash run_client.sh RANK RUN_ID [--set section.key=value ...]}
run_id=${2:?usage: bash run_client.sh RANK RUN_ID [--set section.key=value ...]}
python=$here/.venv/bin/python
[ -x "$python" ] || python=python3
exec "$python" "$here/main_client.py" --cf "$here/config/fedml_config.yaml" --runs "$here/runs" \
  --rank "$rank" --role client --run_id "$run_id" "${@:3}"
