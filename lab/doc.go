// Package lab proves Spore on a KVM that works, on machines that have none.
//
// An outer guest runs under software emulation with a processor that has SVM; inside it kvm-amd loads, /dev/kvm works
// and stock kernels boot with hardware acceleration as far as the inner guests can tell. There the conformance suite of
// the QEMU engine and one whole lifecycle with the real spore program run. The test has the build tag lab, because it
// takes minutes and the whole machine: `make lab`.
//
// An outer guest that stands still or dies, which emulated SVM brings about now and then, has shown nothing about the step
// that it was at: another one takes up from there, twice at most.
package lab
