//go:build linux && cgo

// Package sealed makes the first process of a machine run from a sealed copy of
// its binary in memory. Import it for its side effect, in the guest's build only.
//
// A container must not be able to write to the binary that its first process
// executes (CVE-2019-5736). libcontainer takes the sealed memory file of a
// process that runs from one, and makes a copy for each process that it starts
// otherwise.
//
// This happens in C before Go's runtime starts, which would have to start twice:
// where instructions are emulated that takes a tenth of a boot. If there can be
// no such copy, the process goes on without: package exeseal of libcontainer
// tells.
package sealed

/*
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MFD_EXEC
#define MFD_EXEC 0x0010U // since Linux 6.3
#endif

// What the kernel starts, from the initramfs. It goes once there is the copy,
// which is memory, too; so the copy does not find it.
static const char path[] = "/init";

static int copied(int from, int to)
{
	struct stat st;
	off_t done = 0;

	if (fstat(from, &st) < 0)
		return 0;
	while (done < st.st_size)
		if (sendfile(to, from, &done, st.st_size - done) <= 0)
			return 0;
	return fcntl(to, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0;
}

__attribute__((constructor)) static void seal(int argc, char **argv, char **envp)
{
	int from, to;

	// The first process of a container is one, too.
	if (getpid() != 1 || getenv("_LIBCONTAINER_INITPIPE"))
		return;
	from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0)
		return;
	to = memfd_create("kuasar-task", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_EXEC);
	if (to < 0)
		to = memfd_create("kuasar-task", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (to >= 0 && copied(from, to) && unlink(path) == 0)
		syscall(SYS_execveat, to, "", argv, envp, AT_EMPTY_PATH);
	close(to);
	close(from);
}
*/
import "C"
