#!/bin/bash
# Proves that KVM in the outer guest runs a stock kernel to its first process.
set -euo pipefail
grep -o -m1 -w svm /proc/cpuinfo
ls -l /dev/kvm
out=$(timeout 120 qemu-system-x86_64 -M q35,accel=kvm -cpu host -m 256 -nodefaults -no-user-config -display none \
  -no-reboot -serial stdio -kernel /cargo/vmlinuz -initrd /cargo/initrd -append "console=ttyS0 quiet panic=-1 reboot=t")
echo "$out"
grep -q "inner guest up" <<<"$out"
