#!/bin/bash
# Pupil beside the libraries of Python: tools/check_python.sh [--env FOLDER] [--only WORD] [PUPIL]
#   files of timm, torchvision, open_clip and transformers, both ways (tools/python/check_weights.py);
#   exports, in onnxruntime (tools/python/check_onnx.py); photographs to tensors, beside Pillow.
# FOLDER (default: in the user's cache) gets a Python environment, the first time with some GB of
# packages from the package index; one that has them already is used as it is.
set -euo pipefail
cd "$(dirname "$0")/.."

folder="${XDG_CACHE_HOME:-$HOME/.cache}/pupil/python"
only=""
while [ $# -gt 0 ]; do
  case "$1" in
    --env) folder="$2"; shift 2 ;;
    --only) only="$2"; shift 2 ;;
    -*) sed -n '2,6s/^# //p' "$0"; exit 2 ;;
    *) break ;;
  esac
done
program="$(realpath "${1:-build/pupil}")"
[ -x "$program" ] || { echo "check_python: $program is not there; build it, or name it" >&2; exit 2; }
case "$(realpath -m "$folder")/" in
  "$PWD"/*) echo "check_python: $folder lies in the checkout; choose another folder" >&2; exit 2 ;;
esac

packages="torch torchvision timm transformers open_clip onnx onnxruntime safetensors PIL"
complete() { "$folder/bin/python" -c "import ${packages// /, }" 2>/dev/null; }
if ! complete; then
  python3 -m venv "$folder"
  "$folder/bin/pip" install --quiet --upgrade pip
  "$folder/bin/pip" install --quiet torch torchvision timm transformers open_clip_torch onnx \
    onnxruntime safetensors pillow
  complete || { echo "check_python: $folder lacks some of: $packages" >&2; exit 1; }
fi
export HF_HUB_OFFLINE=1  # nothing is downloaded: all weights are random
"$folder/bin/python" - <<'PYTHON'
import importlib.metadata as m
names = "torch torchvision timm transformers open_clip_torch onnx onnxruntime pillow".split()
print(", ".join(f"{n} {m.version(n)}" for n in names))
PYTHON

failed=0
"$folder/bin/python" tools/python/check_weights.py "$program" --only "$only" || failed=1
if [ -z "$only" ]; then
  if [ -e tools/python/check_onnx.py ]; then
    "$folder/bin/python" tools/python/check_onnx.py "$program" || failed=1
  fi
  "$folder/bin/python" tools/python/time_images.py "$program" || failed=1
fi
exit $failed
