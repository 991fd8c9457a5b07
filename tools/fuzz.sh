#!/bin/bash
# Shows every reader of files more damaged ones than the tests do, under the sanitizers.
#   tools/fuzz.sh [INPUTS [SEED]]    inputs a reader (default 500000); a random seed, which is printed
#   tools/fuzz.sh --coverage         the tests' inputs instead, compiled by clang: the share of each
#                                    reader's branches that they take; below 90 % is a failure
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/functions.sh

if [ "${1-}" = --coverage ]; then
  need_packages $packages_build $packages_data $packages_test $packages_ci llvm python3
  programs="weights_test data_test study_test verify_test"
  run_quietly build-coverage.log cmake --preset test -B build-coverage -DCMAKE_CXX_COMPILER=clang++ \
    -DPUPIL_WERROR=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
    -DCMAKE_CXX_FLAGS="-fprofile-instr-generate -fcoverage-mapping -Wno-pass-failed"
  run_quietly build-coverage.log cmake --build build-coverage --target $programs
  rm -f build-coverage/*.profraw
  objects=()
  for program in $programs; do
    binary="build-coverage/tests/$program"
    objects+=(-object "$binary")
    PUPIL_SOURCE="$PWD" LLVM_PROFILE_FILE="build-coverage/$program.profraw" \
      run_quietly "build-coverage/$program.log" "$binary" --gtest_filter='Fuzz.*'
  done
  llvm-profdata merge -o build-coverage/all.profdata build-coverage/*.profraw
  llvm-cov export -instr-profile build-coverage/all.profdata "${objects[@]}" | python3 tools/fuzz_coverage.py
  exit
fi

need_packages $packages_build $packages_data $packages_test
run_quietly build-asan.log cmake --preset asan
run_quietly build-asan.log cmake --build --preset asan
export PUPIL_FUZZ_INPUTS="${1-500000}" PUPIL_FUZZ_SEED="${2-$RANDOM}"
echo "$PUPIL_FUZZ_INPUTS inputs a reader, seed $PUPIL_FUZZ_SEED"
PUPIL_DIRECT_ALLOC=1 ctest --test-dir build-asan -R '^Fuzz' --timeout 100000 --output-on-failure
