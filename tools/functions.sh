# What the scripts share; sourced, not run.

# The one list of distribution packages; the names are the same in Debian 12 and Ubuntu 24.04.

packages_build="g++ cmake ninja-build pkg-config libdnnl-dev libopenblas-openmp-dev ocl-icd-opencl-dev libcli11-dev
  libtomlplusplus-dev nlohmann-json3-dev libfmt-dev zlib1g-dev libstb-dev libjpeg-dev libutf8proc-dev"
packages_data="dataset-fashion-mnist"
packages_test="libgtest-dev dpkg-dev file"
packages_ci="clang libomp-dev"

# need_packages [--no-install] PACKAGE...: names the missing ones and installs them, as root or
# through sudo. With --no-install it stops the script there, with 1 if something is missing.
need_packages() {
  local install=yes package missing=() as_root=()
  if [ "$1" = --no-install ]; then
    install=no
    shift
  fi
  if ! command -v dpkg-query >/dev/null; then
    echo "This is not Debian or Ubuntu. Needed here, under their names there: $*"
    if [ $install = no ]; then exit 1; fi
    return 0
  fi
  for package in "$@"; do
    case "$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null)" in
      ?i*) ;;
      *) missing+=("$package") ;;
    esac
  done
  if [ ${#missing[@]} = 0 ]; then
    echo "All needed packages are installed: $*"
    if [ $install = no ]; then exit 0; fi
    return 0
  fi
  echo "Missing packages: ${missing[*]}"
  if [ $install = no ]; then
    echo "Install them with: apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "Installing them needs root: run this as root, or install sudo." >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  "${as_root[@]}" apt-get update -q </dev/null
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -q --no-install-recommends "${missing[@]}" </dev/null
}

# run_quietly LOGFILE COMMAND...: shows the end of the log only when the command fails.
run_quietly() {
  local log="$1"
  shift
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 60 "$log" >&2
    echo "failed: $*  (full log: $log)" >&2
    return 1
  fi
}

# run_tests FOLDER [--no-skips] [ctest options]: ends with a line of totals. --no-skips: a skipped
# test is a failure, and so is a run without tests.
run_tests() {
  local folder="$1" no_skips=no status=0 tests failed skipped
  shift
  if [ "${1-}" = --no-skips ]; then
    no_skips=yes
    shift
  fi
  rm -f "$folder/results.xml"
  ctest --test-dir "$folder" --parallel "$(nproc)" --output-on-failure --output-junit results.xml "$@" </dev/null || status=$?
  if [ ! -s "$folder/results.xml" ]; then
    echo "the tests of $folder did not run" >&2
    return 1
  fi
  attribute() {
    sed -n "/<testsuite /,/>/s/.*\\b$1=\"\([0-9]*\)\".*/\\1/p" "$folder/results.xml" | head -n 1
  }
  tests=$(attribute tests) failed=$(attribute failures)
  skipped=$(($(attribute skipped) + $(attribute disabled)))
  if [ "$skipped" -gt 0 ]; then
    echo "Skipped:"
    sed -n 's/.*<testcase name="\([^"]*\)".*status="\(notrun\|disabled\)".*/  \1/p' "$folder/results.xml"
    if [ $no_skips = yes ]; then status=1; fi
  fi
  if [ "$tests" = 0 ]; then status=1; fi
  echo "$((tests - failed - skipped)) passed, $failed failed, $skipped skipped"
  return $status
}
