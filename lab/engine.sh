#!/bin/bash
# The engine's own tests, conformance suite included, with KVM demanded.
set -euo pipefail
export SPORE_TEST_ACCEL=kvm SPORE_TEST_CACHE=/cargo/testbed SPORE_TEST_GUEST=/cargo/engine/guest
cd /cargo/engine
./qemu.test -test.v -test.timeout 12m
