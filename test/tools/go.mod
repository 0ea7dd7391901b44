// This module pins what hack/cri-tools builds, apart from the module that
// ships. Its programs are built with their own pinned dependencies.
module github.com/containerd-kuasar/containerd-kuasar/test/tools

go 1.26.0

require sigs.k8s.io/cri-tools v1.36.0
