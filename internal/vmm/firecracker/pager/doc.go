// Package pager is the process that brings a thawed VM its memory, page by page, as the guest touches it.
//
// A VMM that loads a snapshot with a userfaultfd backend leaves its guest's RAM empty and hands the descriptor to a page
// server. This one reads diff layers over a base memory file as they lie, so nothing is flattened before a thaw. It runs
// as a process of its own, one per VM, because a guest whose pages nobody serves stands still: the server may restart, the
// pager goes on, and the next server adopts it.
//
// # Two sides
//
// Start, Adopt and Handle are the server's side. Main is the pager itself, entered by a hidden subcommand. They speak over
// a Unix socket in the VM's directory, in lines of JSON.
//
// # Whom it trusts
//
// The VMM is hostile: its handshake is checked against the memory that is served, and the pager, once it holds its files,
// keeps no privileges. The files are not believed either: each page of a layer is checked as it is read. A page that cannot
// be had as it was written is never replaced by another. The pager says what is damaged and serves no more, and the
// server ends the VM.
package pager
