#!/bin/sh
# Types and layers, checked on the package as it is installed: export, kernels, cpp_ext and benchmarks below pie_engine.
# Usage: tests/lint.sh FOLDER   (the folder is made anew)
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
tree=$1
rm -rf "$tree"
mkdir -p "$tree"
cp -R "$root/pie_engine" "$tree/pie_engine"
cp -R "$root/export" "$root/kernels" "$root/cpp_ext" "$root/benchmarks" "$tree/pie_engine/"
cp "$root/pyproject.toml" "$tree/"
cd "$tree"
mypy pie_engine
PYTHONPATH=. lint-imports --no-cache
