/* fault ends in the ways that only a language close to the machine can. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static volatile int bottom = -1; /* never reached, which the compiler cannot know */

static int recurse(int depth)
{
	volatile char frame[1024];
	frame[depth % 1024] = depth;
	return depth == bottom ? 0 : recurse(depth + 1) + frame[depth % 1024];
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";
	if (!strcmp(command, "trap"))
		__builtin_trap();
	if (!strcmp(command, "recurse"))
		return recurse(0);
	if (!strcmp(command, "abort"))
		abort();
	if (!strcmp(command, "outside"))
		return *(volatile int *)0xfffffff0;
	fprintf(stderr, "fault: unknown command %s\n", command);
	return 2;
}
