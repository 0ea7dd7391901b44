// Package api is the protocol between the daemon and an agent, beside
// containerd's Task API.
package api

//go:generate protoc --go_out=. --go_opt=paths=source_relative --go-ttrpc_out=. --go-ttrpc_opt=paths=source_relative agent.proto guest.proto

import "encoding/binary"

// Protocol is the version of agent.proto and guest.proto that this build speaks.
const Protocol = 1

// RetainOutput is the annotation ("true") of a container's spec that makes its
// agent keep the newest output; see AgentClient.Retained.
const RetainOutput = "io.kuasar.retain-output"

// CallKey is the metadata (of ttrpc) of a call whose phases its caller is going
// to ask for; see AgentClient.Phases. Its value is the caller's name for the
// call, of at most MaxCall bytes.
const (
	CallKey = "traceparent"
	MaxCall = 64
)

// MaxPhases bounds those of a call.
const MaxPhases = 32

// Port of vsock: a guest's agent listens there, and the host for its hello.
const Port = 1024

// ConsolePort of vsock: a guest's debug console is there, where it has one.
const ConsolePort = 1025

// Modules is a directory where a guest may have more kernel modules than its
// initramfs, shared by the host, for what the kernel itself asks for: a container
// that makes a bridge, say. It has files as package task/guest describes them.
const Modules = "/run/kuasar/share/modules"

// A guest's agent says hello once it listens, so that nobody has to ask whether
// it does: HelloMagic and its Protocol, in network order. The connection has no
// more than that.
const (
	HelloMagic = "kuasar\x00\x01"
	HelloSize  = len(HelloMagic) + 4
)

// Hello is what the agent of this build says.
func Hello() []byte { return binary.BigEndian.AppendUint32([]byte(HelloMagic), Protocol) }

// A guest whose kernel's command line has the word TemplateParam is one that is
// going to be saved, and cloned. Its agent listens, prints the line
// TemplateReady, and says hello when there is a vsock device at last: that is
// plugged into the clones.
const (
	TemplateParam = "kuasar.template"
	TemplateReady = "kuasar: ready to be saved"
)
