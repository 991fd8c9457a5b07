#!/bin/bash
# Can the tests fail? Changes the sources of ops and methods one place at a time and runs the tests
# that are about them. Works beside the test build, whose objects it links; no source is touched.
#   tools/mutants.sh [--count 200] [--seed 1] [--at-least 95]     (--help: all options)
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/functions.sh
need_packages $packages_build $packages_data $packages_test python3 >/dev/null
[ -f build-test/build.ninja ] || run_quietly build-test.log cmake --preset test
run_quietly build-test/build.log cmake --build --preset test
exec python3 tools/mutants.py "$@"
