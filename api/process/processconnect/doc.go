// Package processconnect has the client and the handler of the process service, generated from process.proto.
package processconnect
