// Package spore is the vocabulary of Spore: templates, replicas, artifacts, sandboxes, jobs, their states and
// the transitions between them, their ids, and the typed errors every part answers with. It does no I/O and
// imports nothing beyond the standard library, so that any part, and any user of the client, may import it.
package spore
