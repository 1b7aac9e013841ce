// Package filesystemconnect has the client and the handler of the filesystem service, generated from filesystem.proto.
package filesystemconnect
