#!/bin/bash
# Builds with warnings as errors, runs every test, ends with one line of totals.
#   tools/test.sh [--no-install] [--no-skips]
# --no-install: only list the needed packages and which are missing
# --no-skips:   a skipped test is a failure (for machines that have the reference data)
# Reference data is looked for in $PUPIL_SHARED, else in ../shared; without it some tests skip.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/functions.sh
install= no_skips=
for argument in "$@"; do
  case "$argument" in
    --no-install) install=--no-install ;;
    --no-skips) no_skips=--no-skips ;;
    *)
      sed -n '2,6s/^# *//p' "$0" >&2
      exit 2
      ;;
  esac
done
need_packages $install $packages_build $packages_data $packages_test

folder=build-test
mkdir -p $folder
run_quietly $folder/configure.log cmake --preset test
echo "Building in $folder ..."
run_quietly $folder/build.log cmake --build $folder

run_tests $folder $no_skips
