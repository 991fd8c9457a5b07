#!/bin/bash
# Shows every reader of files more damaged ones than the tests do, under the sanitizers.
#   tools/fuzz.sh [INPUTS [SEED]]     inputs a reader (default 500000); a random seed, which is printed
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/functions.sh
need_packages $packages_build $packages_data $packages_test
run_quietly build-asan.log cmake --preset asan
run_quietly build-asan.log cmake --build --preset asan
export PUPIL_FUZZ_INPUTS="${1-500000}" PUPIL_FUZZ_SEED="${2-$RANDOM}"
echo "$PUPIL_FUZZ_INPUTS inputs a reader, seed $PUPIL_FUZZ_SEED"
PUPIL_DIRECT_ALLOC=1 ctest --test-dir build-asan -R '^Fuzz' --timeout 100000 --output-on-failure
