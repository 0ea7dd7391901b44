package thread

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// A thread that was in a pod's namespaces must not be used for anything else.
func TestThreadsEnd(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	fd, err := unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
	if errors.Is(err, unix.EINVAL) {
		t.Skip("needs pidfds of threads: Linux 6.9")
	}
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(fd)
	var group sync.WaitGroup
	for range 40 {
		group.Go(func() {
			var thread int
			err := Do(func() (err error) {
				if err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
					return err
				}
				thread, err = unix.PidfdOpen(unix.Gettid(), unix.PIDFD_THREAD)
				return err
			})
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(thread)
			if n, err := unix.Poll([]unix.PollFd{{Fd: int32(thread), Events: unix.POLLIN}}, 10_000); n != 1 || err != nil {
				t.Errorf("the thread has not ended: %v", err)
			}
		})
	}
	group.Wait()
}

func TestMainThreadIsSpared(t *testing.T) {
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() {
			err := Do(func() error {
				if unix.Gettid() == unix.Getpid() {
					return fmt.Errorf("it ran on the main thread")
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
}
