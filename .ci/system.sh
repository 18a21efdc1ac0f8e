#!/usr/bin/env bash
# System packages that the targets named as arguments need and this machine lacks (Debian, Ubuntu).
# Nothing is installed where nothing is missing; without root it says what to install.
set -euo pipefail

missing=()
need() { # need COMMAND-OR-FILE PACKAGE
  command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || missing+=("$2")
}

for target in "$@"; do
  case "$target" in
    python)
      python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
      ;;
    cpp)
      need g++ g++
      need cmake cmake
      need /usr/include/gtest/gtest.h libgtest-dev
      need clang-format-19 clang-format-19
      ;;
    browser)
      command -v google-chrome >/dev/null 2>&1 || need chromium chromium
      ;;
    cross)
      need aarch64-linux-gnu-g++ g++-aarch64-linux-gnu
      need qemu-aarch64-static qemu-user-static
      ;;
    cuda12)
      need clang++-22 clang-22
      ;;
    *)
      echo "system.sh: unknown target $target" >&2
      exit 2
      ;;
  esac
done

[ ${#missing[@]} -eq 0 ] && exit 0
if ! command -v apt-get >/dev/null 2>&1; then
  echo "missing: ${missing[*]}; install them with this system's package manager" >&2
  exit 1
fi
run=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo -n true 2>/dev/null; then
    echo "missing: ${missing[*]}; run: sudo apt-get install ${missing[*]}" >&2
    exit 1
  fi
  run=(sudo -n)
fi
echo "installing ${missing[*]}"
"${run[@]}" apt-get update -qq
DEBIAN_FRONTEND=noninteractive "${run[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
