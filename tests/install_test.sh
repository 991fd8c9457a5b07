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
