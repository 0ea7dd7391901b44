#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// glibc passes the program's arguments to constructors.
__attribute__((constructor)) static void kuasar_pause(int argc, char **argv)
{
	sigset_t set;
	int sig;

	if (argc < 2 || strcmp(argv[1], "pause") != 0)
		return;

	// The kernel does not deliver signals to the first process of a pid
	// namespace that would act by default; blocked ones it keeps.
	sigfillset(&set);
	if (sigprocmask(SIG_SETMASK, &set, NULL) != 0)
		_exit(1);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (sigwait(&set, &sig) != 0)
			_exit(1);
		if (sig != SIGCHLD)
			_exit(0);
	}
}
