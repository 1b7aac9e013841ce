// Package vmmtest is the conformance suite of package vmm: what the contract says, tried on an engine with real guests.
//
// An engine's own tests call Run with a Harness. The guest that the suite talks to is cmd guest beneath this package,
// for engines that boot kernels; an engine without a kernel brings its own, which answers the same commands.
package vmmtest
