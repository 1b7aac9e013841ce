// Package process is the wire form of a sandbox's process service, generated from process.proto.
package process

//go:generate protoc -I . --go_out=. --go_opt=paths=source_relative --connect-go_out=. --connect-go_opt=paths=source_relative process.proto
