#!/usr/bin/env bash
# Runs the whole benchmark and keeps its raw JSON in bench/results. Arguments go to spore bench.
set -euo pipefail
cd "$(dirname "$0")/.."
exec bin/spore bench --results bench/results "$@"
