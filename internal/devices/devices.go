// Package devices knows the devices of containers.
package devices

import "github.com/opencontainers/runtime-spec/specs-go"

// All says whether a container may use all devices, as privileged ones may.
func All(r *specs.LinuxResources) bool {
	all := false
	if r != nil {
		for _, d := range r.Devices { // each rule overrules those before
			if (d.Type == "" || d.Type == "a") && d.Major == nil && d.Minor == nil {
				all = d.Allow
			}
		}
	}
	return all
}

// Majors of character devices that have the same numbers on every Linux
// (Documentation/admin-guide/devices.txt), like /dev/null, /dev/tty and
// /dev/fuse.
const (
	memory   = 1
	terminal = 5
	misc     = 10
)

// firstMisc is the lowest minor of the misc devices with numbers of their own;
// the kernel gives away those below, and above 255, as drivers ask for them
// (linux/miscdevice.h).
const firstMisc, lastMisc = 128, 254

// Universal says whether a device of one machine is the same thing on another,
// if that has it.
func Universal(d specs.LinuxDevice) bool {
	switch {
	case d.Type == "p": // a pipe has no driver
		return true
	case d.Type != "c" && d.Type != "u":
		return false
	case d.Major == misc:
		return d.Minor >= firstMisc && d.Minor <= lastMisc
	}
	return d.Major == memory || d.Major == terminal
}
