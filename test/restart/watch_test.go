package restart

import (
	"os/exec"
	"path/filepath"

	"github.com/fsnotify/fsnotify"
)

// watch tells when something in a directory changes.
func watch(dir string) (changed <-chan fsnotify.Event, stop func(), err error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, nil, err
	}
	if err := w.Add(dir); err != nil {
		w.Close()
		return nil, nil, err
	}
	return w.Events, func() { w.Close() }, nil
}

// lookPath finds a program, by its whole path.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(path)
}
