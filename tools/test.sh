#!/bin/bash
# Builds with warnings as errors, runs every test, ends with one line of totals.
#   tools/test.sh [--no-install] [--no-skips]
# --no-install: only list the needed packages and which are missing
# --no-skips:   a skipped test is a failure (for machines that have the reference data)
# Reference data is looked for in $PUPIL_SHARED, else in ../shared; without it some tests skip.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/packages.sh
install= no_skips=no
for argument in "$@"; do
  case "$argument" in
    --no-install) install=--no-install ;;
    --no-skips) no_skips=yes ;;
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

rm -f $folder/results.xml
status=0
ctest --test-dir $folder --output-on-failure --output-junit results.xml </dev/null || status=$?
count() { sed -n "/<testsuite /,/>/s/.*\\b$1=\"\\([0-9]*\\)\".*/\\1/p" $folder/results.xml | head -n 1; }
if [ ! -s $folder/results.xml ]; then
  echo "the tests did not run" >&2
  exit 1
fi
tests=$(count tests) failed=$(count failures) skipped=$(($(count skipped) + $(count disabled)))
if [ "$skipped" -gt 0 ]; then
  echo "Skipped:"
  sed -n 's/.*<testcase name="\([^"]*\)".*status="\(notrun\|disabled\)".*/  \1/p' $folder/results.xml
  if [ $no_skips = yes ]; then status=1; fi
fi
if [ "$tests" = 0 ]; then status=1; fi
echo "$((tests - failed - skipped)) passed, $failed failed, $skipped skipped"
exit $status
