#!/bin/bash
# Installs a build into a temporary folder and uses the installation as a stranger would: runs
# `pupil verify` on the installed cases, builds tests/stranger with find_package(pupil), runs it.
#   tests/install_test.sh BUILD_FOLDER
set -euo pipefail
source_folder="$(cd "$(dirname "$0")/.." && pwd)"
build_folder="$(cd "$1" && pwd)"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"
cmake --install "$build_folder" --prefix "$work/installed" >install.log
installed/bin/pupil --version
installed/bin/pupil verify | tail -n 1 | tee verify.log
grep -Eq '^[1-9][0-9]* passed, 0 failed' verify.log

cp -r "$source_folder/tests/stranger" .
cmake -S stranger -B stranger/build -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH="$work/installed" >configure.log
cmake --build stranger/build >build.log 2>&1 || {
  cat build.log
  exit 1
}
stranger/build/stranger

# As the command line: data made here, a teacher, then a student that learns by the stranger's method.
write_mnist() {  # PREFIX COUNT: noise, the labels 0, 1, ... 9, 0, ...; COUNT below 256
  local size label
  size="$(printf '\\x%02x' "$2")"
  { printf "\0\0\x08\x03\0\0\0$size\0\0\0\x08\0\0\0\x08"; head -c $((64 * $2)) installed/bin/pupil; } >"$1-images-idx3-ubyte"
  { printf "\0\0\x08\x01\0\0\0$size"; for ((label = 0; label < $2; label++)); do printf "\\x0$((label % 10))"; done; } >"$1-labels-idx1-ubyte"
}
write_mnist train 64
write_mnist t10k 32
short=(--set train.epochs=2 --set train.batch=16 --set student.image=8)
stranger/build/stranger init --student resnet8_kd --data mnist:. >alone.toml
stranger/build/stranger train alone.toml --run teacher "${short[@]}" >train.log
stranger/build/stranger init --student resnet8_kd --data mnist:. --teacher teacher/best.safetensors \
  --method soft_match >own.toml
stranger/build/stranger train own.toml --run own "${short[@]}" >train.log
grep -q 'soft_match ' train.log
grep -q '"final":true' own/metrics.jsonl
