/*
 * Components of WASI preview 2, which the Go package of Wasmtime has no calls
 * for. Errors are strings to free, NULL is success.
 */
#ifndef COMPONENT_H
#define COMPONENT_H

#include <stddef.h>
#include <stdint.h>

struct component;

struct directory {
	const char *host, *guest;
	int read_only;
};

/* What a component gets. A memory of 0 is no limit. */
struct process {
	size_t argc, envc, dirc;
	const char **argv, **keys, **values;
	const struct directory *dirs;
	int64_t memory;
};

/* Compiles a component; code is to be freed with component_free. */
char *component_compile(const void *wasm, size_t size, size_t stack, char **code, size_t *length);
void component_free(char *code, size_t length);

char *component_load(const char *path, size_t stack, struct component **out);

/* Runs the component to its end with the stdio of this process. */
char *component_run(struct component *c, const struct process *p, int *status);

#endif
