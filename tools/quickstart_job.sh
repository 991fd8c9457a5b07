#!/bin/bash
# The main job of the quickstart on Fashion-MNIST: a teacher on all training images, then a small
# student alone, with KD and with AFT. Stopped, it goes on where it was.
#   tools/quickstart_job.sh PROGRAM [RUNS]     RUNS: folder of the runs (default: runs/quickstart)
set -euo pipefail
program="$(realpath "$1")"
runs="${2:-runs/quickstart}"
cd "$(dirname "$0")/.."
train() {
  local resume=()
  if [ -e "$2" ]; then resume=(--resume); fi
  "$program" train "tools/recipes/$1" --run "$2" "${resume[@]}" "${@:3}"
}
train fashion_teacher.toml "$runs/teacher"
train fashion_students.toml "$runs/students" --set "teacher.0.weights=$runs/teacher/last.safetensors"
"$program" report "$runs/teacher" "$runs/students" --out "$runs/report.html"
