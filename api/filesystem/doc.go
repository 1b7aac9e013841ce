// Package filesystem is the wire form of a sandbox's filesystem service, generated from filesystem.proto.
package filesystem

//go:generate protoc -I . --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative filesystem.proto
