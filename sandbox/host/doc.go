// Package host makes what a pod needs on this host whatever runs its
// processes: its files, its namespaces, and the rootfs and spec of each of its
// containers. All of it lives in the sandbox's own directory (sandbox.Spec.Dir):
//
//	hosts hostname resolv.conf   the pod's files
//	shm                          a tmpfs, /dev/shm of its containers
//	ns/{ipc,uts,user,pid}        its namespaces, as bind mounts of nsfs files
//	containers/<id>/config.json  a container's OCI bundle
//	containers/<id>/rootfs       a mount
//
// So the names tell what exists, and everything can be removed after a crash at
// any point without a record of it. Functions that plan are pure; those that
// act need root.
package host
