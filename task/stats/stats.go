// Package stats reads a cgroup's usage into the metrics messages of
// containerd/cgroups.
package stats

import (
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// Metrics of a container.
func Metrics(paths map[string]string) (typeurl.Any, error) { return nil, errdefs.ErrNotImplemented }

// Pod metrics.
func Pod(parent string) (typeurl.Any, error) { return nil, errdefs.ErrNotImplemented }

// Paths finds directories.
func Paths(cgroup string) (map[string]string, error) { return nil, errdefs.ErrNotImplemented }
