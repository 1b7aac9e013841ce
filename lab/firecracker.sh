#!/bin/bash
# The Firecracker engine's own tests, conformance suite included, with the real binaries that the name of the step says.
set -euo pipefail
name=${0##*-engine-}
vmm=/cargo/vmms/$name/$name
export SPORE_FIRECRACKER=$vmm/firecracker SPORE_JAILER=$vmm/jailer
export SPORE_TEST_ACCEL=kvm SPORE_TEST_CACHE=/cargo/testbed SPORE_TEST_GUEST=/cargo/engine/guest
cd /cargo/engine
# The console and a start of many at once are left out as with QEMU: they take minutes where KVM is itself emulated.
./firecracker.test -test.v -test.timeout 12m -test.run '^(TestConformanceUnderKVM|TestTinyGuest)$' \
  -test.skip '^TestConformanceUnderKVM$/.*/^Lifecycle$/^(Console|ManyAtOnce)$'
