#!/bin/bash
# Lines of code without blank and comment lines. The core is meant to stay within 4,500 lines, an op
# file within about 150 with its samples (with --ops: one line per op file).
set -euo pipefail
cd "$(dirname "$0")/.."
count() { # FOLDER [find options]: of the .h and .cc files
  find "$@" -name '*.h' -print0 -o -name '*.cc' -print0 | xargs -0 -r cat | grep -Evc '^\s*(//.*)?$' || true
}
core=$(($(count tensor -path tensor/ops -prune -o) + $(count autograd) + $(count nn)))
echo "core (tensor without ops, autograd, nn): $core of 4500 lines"
for folder in tensor/ops data models methods tools tests tests/cuda_emu; do
  [ -d $folder ] && printf '%-14s %6d lines\n' $folder "$(count $folder)"
done
if [ "${1-}" = --ops ]; then
  for file in tensor/ops/*.cc; do printf '%-28s %5d\n' "$file" "$(grep -Evc '^\s*(//.*)?$' "$file")"; done
fi
