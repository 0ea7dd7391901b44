// Package job is what the lab and its machine's first process tell each other.
package job

// File in the machine's initramfs that has the Job, as JSON.
const File = "job.json"

// Job is what the machine does.
type Job struct {
	Args []string
	Env  []string
	Dir  string

	// Cgroup is "v1" or "v2".
	Cgroup string
	// Systemd makes that the machine's first process, and runs the job as a
	// service of it.
	Systemd bool
}

// Names of the machine's virtio ports.
const (
	Output = "output" // what the job writes
	Status = "status" // how it ended, a decimal number and a line feed
)

// Tag of the virtiofs device that has the host's root file system.
const Tag = "root"

// Temporary is the machine's directory for temporary files: of memory, and with
// a short name, for unix sockets below it.
const Temporary = "/t"
