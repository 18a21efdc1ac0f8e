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
      need clang++-19 clang-19
      need /usr/lib/llvm-19/lib/clang/19/lib/linux/libclang_rt.fuzzer-x86_64.a libclang-rt-19-dev
      need /usr/include/nlohmann/json.hpp nlohmann-json3-dev
      need ccache ccache
      need ffmpeg ffmpeg
      need pkg-config pkg-config
      need /usr/include/gstreamer-1.0/gst/gst.h libgstreamer1.0-dev
      need /usr/include/gstreamer-1.0/gst/app/gstappsink.h libgstreamer-plugins-base1.0-dev
      need "$(find /usr/lib -name libgstvideotestsrc.so -print -quit 2>/dev/null || true)" gstreamer1.0-plugins-base
      need "$(find /usr/lib -name libgstisomp4.so -print -quit 2>/dev/null || true)" gstreamer1.0-plugins-good
      need "$(find /usr/lib -name libgstlibav.so -print -quit 2>/dev/null || true)" gstreamer1.0-libav
      ;;
    browser)
      command -v google-chrome >/dev/null 2>&1 || need chromium chromium
      ;;
    triton)
      # tritonserver embeds the interpreter from its shared library
      version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
      need "/usr/lib/$(uname -m)-linux-gnu/libpython$version.so.1.0" "libpython$version"
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
