package critest

import "github.com/containerd-kuasar/containerd-kuasar/test/bed"

// Exclusions are the cases of a handler that may fail, or be skipped although
// the handler that it is compared with passes: by handler and full name, with
// the cause. A case that passes must not be among them.
type Exclusions map[string]map[string]string

// excluded of the Wasm sandboxer are the cases that are about programs of Linux,
// and what only they can see or do; of virtual machines, those about the host.
var excluded = Exclusions{bed.VMM: causes(map[string][]string{
	"a guest has namespaces of its own; a pod that asks for the host's is refused": {
		"Security Context NamespaceOption runtime should support HostIpc is true",
		"Security Context NamespaceOption runtime should support HostNetwork is true",
		"Security Context NamespaceOption runtime should support HostPID",
		"Streaming runtime should support streaming interfaces runtime should support portforward in host network",
	},
	"a guest's users are not the host's; a pod that asks for a user namespace is refused": {
		"Security Context UserNamespaces when Host idmap mount support is needed runtime should support NamespaceMode_POD",
	},
	"what a guest mounts stays there": {
		"Container Mount Propagation runtime should support mount propagation mount with 'rshared' should support propagation from host to container and vice versa",
	},
	"the case removes on the host what is mounted below a volume, while a container has that": {
		"Container Mount Readonly runtime should support readonly mounts should support non-recursive readonly mounts",
		"Container Mount Readonly runtime should support readonly mounts should support recursive readonly mounts",
	},
}), bed.Wasm: causes(map[string][]string{
	"the case runs images of Linux programs that critest names itself": {
		"Image Identifier Consistency should return the same image identifier across all APIs [Conformance]",
		"Image Identifier Consistency should return the same image identifier when pulled from different registries [Conformance]",
		"Multiple Containers [Conformance] when running multiple containers in a pod should support container exec",
		"Multiple Containers [Conformance] when running multiple containers in a pod should support container log",
		"Multiple Containers [Conformance] when running multiple containers in a pod should support network",
		"Networking runtime should support networking runtime should support port mapping with host port and container port [Conformance]",
		"Networking runtime should support networking runtime should support port mapping with only container port [Conformance]",
		"Security Context NamespaceOption runtime should support ContainerPID",
		"Security Context NamespaceOption runtime should support HostPID",
		"Security Context NamespaceOption runtime should support PodPID",
		"Security Context NoNewPrivs should allow privilege escalation when false",
		"Security Context NoNewPrivs should not allow privilege escalation when true",
		"Security Context SupplementalGroupsPolicy when SupplementalGroupsPolicy=Merge (Default) if the container's primary UID belongs to some groups in the image, runtime should add SupplementalGroups to them",
		"Security Context SupplementalGroupsPolicy when SupplementalGroupsPolicy=Strict even if the container's primary UID belongs to some groups in the image, runtime should not add SupplementalGroups to them",
		"Streaming runtime should support streaming interfaces runtime should support portforward [Conformance]",
		"Streaming runtime should support streaming interfaces runtime should support portforward in host network",
	},
	"a module sees no processes": {
		"Container runtime should support basic operations on container runtime should support execSync with timeout [Conformance]",
	},
	"a module's memory is limited by its engine, so that it is told and not killed": {
		"Container OOM runtime should output OOMKilled reason should terminate with exitCode 137 and reason OOMKilled",
	},
	"a module's shell has no pipes; TestReadOnlyTree of task/wasm/cell holds the same": {
		"Container Mount Readonly runtime should support readonly mounts should support recursive readonly mounts",
	},
	"a module cannot mount, and exec mounts the container's volumes as they are then": {
		"Container Mount Propagation runtime should support mount propagation mount with 'rprivate' should not support propagation",
		"Container Mount Propagation runtime should support mount propagation mount with 'rshared' should support propagation from host to container and vice versa",
		"Container Mount Propagation runtime should support mount propagation mount with 'rslave' should support propagation from host to container",
	},
	"there is no /proc for a module": {
		"PodSandbox runtime should support sysctls should support safe sysctls",
		"PodSandbox runtime should support sysctls should support unsafe sysctls",
		"Security Context SeccompProfilePath runtime should ignore a seccomp profile that blocks setting hostname when privileged",
		"Security Context SeccompProfilePath runtime should not block setting host name with unconfined seccomp and SYS_ADMIN",
		"Security Context SeccompProfilePath should support nil profile, which is unconfined",
		"Security Context SeccompProfilePath should support seccomp default on the container",
		"Security Context SeccompProfilePath should support seccomp localhost profile on the container",
		"Security Context SeccompProfilePath should support seccomp unconfined on the container",
		"Security Context UserNamespaces when Host idmap mount support is not needed runtime should support NamespaceMode_NODE",
	},
	"a Wasm pod has no user namespace": {
		"Security Context UserNamespaces when Host idmap mount support is needed runtime should support NamespaceMode_POD",
	},
	"a module has no sockets to connect with": {
		"Security Context NamespaceOption runtime should support HostNetwork is true",
	},
	"a module has no host name and no System V IPC": {
		"Networking runtime should support networking runtime should support set hostname [Conformance]",
		"Security Context NamespaceOption runtime should support HostIpc is false",
		"Security Context NamespaceOption runtime should support HostIpc is true",
	},
	"WASI has no users: what a module's are shows in its files": {
		"Security Context bucket runtime should support RunAsGroup",
		"Security Context bucket runtime should support RunAsUser",
		"Security Context bucket runtime should support RunAsUserName",
		"Security Context bucket runtime should support SupplementalGroups",
	},
	"a module has no system calls that a capability would allow": {
		"Security Context bucket runtime should support Privileged is true",
		"Security Context bucket runtime should support adding ALL capabilities",
		"Security Context bucket runtime should support adding capability",
		"Security Context bucket runtime should support dropping ALL capabilities",
		"Security Context bucket runtime should support dropping capability",
	},
	"paths of an image are neither masked nor made read-only; those of /proc and /sys are not there": {
		"Security Context bucket runtime should support MaskedPaths",
		"Security Context bucket runtime should support ReadonlyPaths",
	},
})}

// causes turns a list of cases by cause around.
func causes(by map[string][]string) map[string]string {
	all := make(map[string]string)
	for cause, names := range by {
		for _, name := range names {
			all[name] = cause
		}
	}
	return all
}
