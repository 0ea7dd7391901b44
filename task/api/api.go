// Package api is the protocol between the daemon and an agent, beside
// containerd's Task API.
package api

// Protocol is the version of agent.proto that this build speaks.
const Protocol = 1

// RetainOutput is the annotation ("true") of a container's spec that makes its
// agent keep the newest output; see AgentClient.Retained.
const RetainOutput = "io.kuasar.retain-output"
