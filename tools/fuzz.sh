#!/bin/bash
# Shows every reader of files more damaged ones than the tests do, under the sanitizers.
#   tools/fuzz.sh [INPUTS [SEED]]    inputs a reader (default 500000); a random seed, which is printed
#   tools/fuzz.sh --coverage         the tests' inputs instead, compiled by clang: the share of each
#                                    reader's branches that they take; below 90 % is a failure.
#                                    Behind it --missed: also each branch that none takes
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/functions.sh
programs="$(grep -l '^TEST(Fuzz' tests/*_test.cc | xargs -n 1 basename -s .cc)"
export PUPIL_SOURCE="$PWD"

if [ "${1-}" = --coverage ]; then
  need_packages $packages_build $packages_data $packages_test $packages_ci llvm libclang-rt-dev python3
  mkdir -p build-coverage
  run_quietly build-coverage/configure.log cmake --preset test -B build-coverage -DCMAKE_CXX_COMPILER=clang++ \
    -DPUPIL_WERROR=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
    -DCMAKE_CXX_FLAGS="-fprofile-instr-generate -fcoverage-mapping -Wno-pass-failed"
  run_quietly build-coverage/build.log cmake --build build-coverage --target $programs
  rm -f build-coverage/*.profraw
  objects=()
  for program in $programs; do
    binary="build-coverage/tests/$program"
    objects+=(-object "$binary")
    LLVM_PROFILE_FILE="build-coverage/$program.profraw" \
      run_quietly "build-coverage/$program.log" "$binary" --gtest_filter='Fuzz.*'
  done
  llvm-profdata merge -o build-coverage/all.profdata build-coverage/*.profraw
  llvm-cov export -instr-profile build-coverage/all.profdata "${objects[@]}" |
    python3 tools/fuzz_coverage.py ${2-}
  exit
fi

need_packages $packages_build $packages_data $packages_test
mkdir -p build-asan
run_quietly build-asan/configure.log cmake --preset asan
run_quietly build-asan/build.log cmake --build --preset asan --target $programs
export PUPIL_FUZZ_INPUTS="${1-500000}" PUPIL_FUZZ_SEED="${2-$RANDOM}" PUPIL_DIRECT_ALLOC=1
echo "$PUPIL_FUZZ_INPUTS inputs a reader, seed $PUPIL_FUZZ_SEED"
failed=0
for program in $programs; do  # not by ctest, which stops a test after five minutes
  "build-asan/tests/$program" --gtest_filter='Fuzz.*' || failed=1
done
exit $failed
