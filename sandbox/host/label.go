package host

import (
	"errors"
	"fmt"
	"regexp"

	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// level is a range of SELinux sensitivities and categories, as containerd
// accepts it.
var level = regexp.MustCompile(`^s\d(-s\d)??(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)

// Labels are the SELinux labels of a pod's processes and files, with
// categories that no other pod has unless o says which. Empty where SELinux is
// off. CRI gives them to the pod's containers, and their categories back; on a
// failure do so with ReleaseLabel.
func Labels(o *runtime.SELinuxOption) (process, mount string, err error) {
	if o.GetLevel() != "" && !level.MatchString(o.GetLevel()) {
		return "", "", invalid("SELinux level %q", o.GetLevel())
	}
	var options []string
	for _, part := range []struct{ name, value string }{
		{"user:", o.GetUser()}, {"role:", o.GetRole()}, {"type:", o.GetType()}, {"level:", o.GetLevel()},
	} {
		if part.value != "" {
			options = append(options, part.name+part.value)
		}
	}
	if process, mount, err = label.InitLabels(options); err != nil {
		return "", "", fmt.Errorf("SELinux options %v: %w", options, err)
	}
	return process, mount, nil
}

// ReleaseLabel gives the categories of a process label back.
func ReleaseLabel(process string) {
	if process != "" {
		selinux.ReleaseLabel(process)
	}
}

// Relabel gives the pod's files the label of a container's mounts. Empty does
// nothing.
func (v View) Relabel(mount string) error {
	if mount == "" {
		return nil
	}
	for _, f := range v.Files() {
		if f.Source == devShm {
			continue // the host's
		}
		if err := label.Relabel(f.Source, mount, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("label %s as %s: %w", f.Source, mount, err)
		}
	}
	return nil
}
