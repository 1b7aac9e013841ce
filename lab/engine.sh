#!/bin/bash
# The engine's own tests, conformance suite included, with KVM demanded.
set -euo pipefail
export SPORE_TEST_ACCEL=kvm SPORE_TEST_CACHE=/cargo/testbed SPORE_TEST_GUEST=/cargo/engine/guest
cd /cargo/engine
# Where KVM is emulated a character on the serial console takes a millisecond, and half a megabyte of them too long. The
# console does not depend on the accelerator.
./qemu.test -test.v -test.timeout 12m -test.skip '^TestConformance$/^Lifecycle$/^Console$'
