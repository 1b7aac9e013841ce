#!/bin/bash
# The engine's own tests, conformance suite included, with KVM demanded.
set -euo pipefail
export SPORE_TEST_ACCEL=kvm SPORE_TEST_CACHE=/cargo/testbed SPORE_TEST_GUEST=/cargo/engine/guest
cd /cargo/engine
# What is of interest here is what depends on the accelerator. The console does not, and half a megabyte of it takes
# minutes where KVM is itself emulated; so does a start of many at once.
./qemu.test -test.v -test.timeout 12m -test.run '^(TestConformance|TestProcessIsConfined|TestTrialOfKVM)$' \
  -test.skip '^TestConformance$/^Lifecycle$/^Console$'
