#!/bin/bash
# From a fresh clone to a trained student: installs missing packages, builds the program, runs the
# main job on Fashion-MNIST.
#   tools/quickstart.sh [--no-install]     --no-install: only list the needed packages
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/functions.sh
install=
case "${1-}" in
  "") ;;
  --no-install) install=--no-install ;;
  *)
    sed -n '2,4s/^# *//p' "$0" >&2
    exit 2
    ;;
esac
need_packages $install $packages_build $packages_data

folder=build
mkdir -p $folder
echo "Building the program in $folder ..."
start=$SECONDS
run_quietly $folder/configure.log cmake --preset cpu
run_quietly $folder/build.log cmake --build $folder --target pupil_program
echo "Built $folder/pupil in $((SECONDS - start)) s."

tools/quickstart_job.sh $folder/pupil
