package e2e

import (
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDevices gives a container a device and keeps others from it.
func TestDevices(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		c := n.run(n.pod(nil), func(c *runtime.ContainerConfig) {
			c.Devices = []*runtime.Device{{HostPath: "/dev/zero", ContainerPath: "/dev/given", Permissions: "r"}}
		})
		equal(t, "bytes of the device", n.exec(c, "head -c 4 /dev/given | wc -c"), "4")
		// Of the devices that every container has, zero may be written; kmsg
		// is none of them, and its node is of no use.
		r, err := c.Exec(n.ctx, "mknod /kmsg c 1 11 && cat /kmsg")
		n.must(err)
		contains(t, "read of a device that is not given", string(r.Stderr), "Operation not permitted")
	})
}

// TestPrivileged gives a container the host's devices and all capabilities.
func TestPrivileged(t *testing.T) {
	each(t, func(t *testing.T, n *fixture) {
		p := n.pod(func(c *runtime.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
		c := n.run(p, func(c *runtime.ContainerConfig) { c.Linux.SecurityContext.Privileged = true })
		n.exec(c, "test -c /dev/kmsg")
		n.exec(c, "mkdir /m && mount -t tmpfs none /m")
		equal(t, "writable /proc/sys", n.exec(c, "test -w /proc/sys/kernel/hostname && echo yes"), "yes")
		equal(t, "seccomp", n.exec(c, "grep Seccomp: /proc/self/status | tr -d '\\t'"), "Seccomp:0")
	})
}
