// Package bed is where the tests run the real thing: the daemon as it is
// built, on private paths, with real pods.
//
// # Isolation
//
// A test binary that calls Main (and the demo, which calls Isolate) runs in
// pid, mount, network and cgroup namespaces of its own. So several can run at
// a time on one machine, they touch none of its bridges, iptables rules,
// ports, mounts and cgroups, whatever they leak is theirs to find, and the
// kernel ends it all when they end, however they end.
//
//	go test ─ outer ─ init (pid 1: reaps) ─ the tests ─ containerd-kuasar, shims, worker, containers
//
// # A bed
//
// New makes a directory with configuration, CNI network, images and registry;
// Bed.Start starts the daemon and returns when it says that it is ready.
// Daemon deaths and upgrades are part of what is tested: Kill, Stop and Start
// work at any time. Close ends everything; Leaks says what is left.
package bed
