#!/usr/bin/env bash
# Writes server.lock and builder.lock: every version that the two images install, from a fresh resolution of
# pyproject.toml. Needs Python 3.11, the images' own (PYTHON names it).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
  || { echo "The images run Python 3.11, and '$PYTHON' is another; name one: make lock PYTHON=python3.11" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A copy, because setuptools leaves its build folder in the source tree.
mkdir "$work/source"
cp -r pyproject.toml README.md LICENSE fiberwalk builder model_store service "$work/source/"

lock() { # NAME EXTRAS
  echo "docker/$1.lock" >&2
  "$PYTHON" -m venv "$work/$1"
  "$work/$1/bin/python" -m pip install --quiet --disable-pip-version-check "$work/source$2"
  {
    echo "# Written by 'make lock'; do not edit."
    # Torch's CPU and CUDA builds share a version: the suffix and the CUDA libraries follow from the index that is used.
    "$work/$1/bin/python" -m pip freeze --disable-pip-version-check --exclude fiberwalk \
      | sed -E 's/\+[A-Za-z0-9.]+$//' | grep -vE '^(nvidia-|cuda-|triton)'
  } > "$work/$1.lock"
  if grep -nE '@|://' "$work/$1.lock"; then echo "docker/$1.lock would name a place of this machine" >&2; exit 1; fi
  mv "$work/$1.lock" "docker/$1.lock"
}

lock server ''
lock builder '[build]'
