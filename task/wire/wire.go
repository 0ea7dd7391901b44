// Package wire has the messages of containerd's Task API for the agent's end of
// a connection. The daemon's end uses containerd's own package.
//
// That package brings along gRPC, image-spec, regular expressions and
// cryptography: twice the binary, and a millisecond of initialisation in each
// process that the agent executes itself for. On the wire the messages are the
// same, which a test holds.
package wire

//go:generate sh -c "protoc -I .. -I $(go list -m -f '{{.Dir}}' github.com/containerd/containerd/api) --go_out=.. --go_opt=paths=source_relative --go_opt=Mtypes/task/task.proto=github.com/containerd/containerd/api/types/task wire/task.proto"
