#!/bin/bash
# PID 1 of the outer guest: makes /dev/kvm work, runs each step of the cargo, says how each ended, powers off.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
echo 1 >/proc/sys/kernel/printk # a message of the kernel within a line would hide it
ln -s /proc/self/fd /dev/fd
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup || echo "lab: there are no control groups"
busybox ip link set lo up
modprobe tun || echo "lab: tun does not load"
modprobe kvm-amd || echo "lab: kvm-amd does not load"
mkdir -m 1777 /cargo/tmp
export TMPDIR=/cargo/tmp
# Whoever listens can tell that this guest lives, whatever a step does.
(while sleep 10; do echo LAB-ALIVE; done) &
for step in /cargo/steps/*; do
  name=$(basename "$step") # its number and name
  echo "LAB-STEP $name"
  (cd /cargo && exec "$step") </dev/null 2>&1
  echo "LAB-RESULT $name $?"
done
echo LAB-OVER
sync
busybox poweroff -f
