# The one list of distribution packages (the names are the same in Debian 12 and Ubuntu 24.04), and
# the function that installs what is missing. Sourced by the other scripts, not run.

packages_build="g++ cmake ninja-build pkg-config libdnnl-dev libcli11-dev libtomlplusplus-dev
  nlohmann-json3-dev libfmt-dev zlib1g-dev libstb-dev libjpeg-dev"
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
