#define _GNU_SOURCE /* asprintf */
#include "component.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Of Wasmtime's C API, what is used here. Its headers are in the Go package's
 * directory, which has no name that cgo could be given.
 */
typedef struct wasm_config_t wasm_config_t;
typedef struct wasm_engine_t wasm_engine_t;
typedef struct wasi_config_t wasi_config_t;
typedef struct wasmtime_error wasmtime_error_t;
typedef struct wasmtime_store wasmtime_store_t;
typedef struct wasmtime_context wasmtime_context_t;
typedef struct wasmtime_component_t wasmtime_component_t;
typedef struct wasmtime_component_linker_t wasmtime_component_linker_t;
typedef struct wasmtime_component_export_index_t wasmtime_component_export_index_t;

typedef struct {
	size_t size;
	char *data;
} wasm_byte_vec_t;

typedef struct {
	uint64_t store;
	uint32_t index;
} wasmtime_component_instance_t;

typedef struct {
	struct {
		uint64_t store;
		uint32_t index;
	} instance;
	uint32_t export;
} wasmtime_component_func_t;

/* A value, of which only a result without payload is looked at. */
typedef struct {
	uint8_t kind;
	union {
		struct {
			bool is_ok;
			void *value;
		} result;
		uint64_t room[4];
	} of;
} wasmtime_component_val_t;

wasm_config_t *wasm_config_new(void);
void wasmtime_config_wasm_component_model_set(wasm_config_t *, bool);
void wasmtime_config_max_wasm_stack_set(wasm_config_t *, size_t);
wasm_engine_t *wasm_engine_new_with_config(wasm_config_t *);
void wasm_engine_delete(wasm_engine_t *);
void wasm_byte_vec_delete(wasm_byte_vec_t *);
void wasmtime_error_message(const wasmtime_error_t *, wasm_byte_vec_t *);
bool wasmtime_error_exit_status(const wasmtime_error_t *, int *);
void wasmtime_error_delete(wasmtime_error_t *);
wasmtime_store_t *wasmtime_store_new(wasm_engine_t *, void *, void (*)(void *));
wasmtime_context_t *wasmtime_store_context(wasmtime_store_t *);
void wasmtime_store_limiter(wasmtime_store_t *, int64_t, int64_t, int64_t, int64_t, int64_t);
wasmtime_error_t *wasmtime_context_set_wasi(wasmtime_context_t *, wasi_config_t *);
wasi_config_t *wasi_config_new(void);
bool wasi_config_set_argv(wasi_config_t *, size_t, const char **);
bool wasi_config_set_env(wasi_config_t *, size_t, const char **, const char **);
void wasi_config_inherit_stdin(wasi_config_t *);
void wasi_config_inherit_stdout(wasi_config_t *);
void wasi_config_inherit_stderr(wasi_config_t *);
bool wasi_config_preopen_dir(wasi_config_t *, const char *, const char *, size_t, size_t);
wasmtime_error_t *wasmtime_component_new(const wasm_engine_t *, const uint8_t *, size_t, wasmtime_component_t **);
wasmtime_error_t *wasmtime_component_serialize(const wasmtime_component_t *, wasm_byte_vec_t *);
wasmtime_error_t *wasmtime_component_deserialize_file(const wasm_engine_t *, const char *, wasmtime_component_t **);
void wasmtime_component_delete(wasmtime_component_t *);
wasmtime_component_export_index_t *wasmtime_component_get_export_index(const wasmtime_component_t *,
	const wasmtime_component_export_index_t *, const char *, size_t);
wasmtime_component_linker_t *wasmtime_component_linker_new(const wasm_engine_t *);
wasmtime_error_t *wasmtime_component_linker_add_wasip2(wasmtime_component_linker_t *);
wasmtime_error_t *wasmtime_component_linker_instantiate(const wasmtime_component_linker_t *, wasmtime_context_t *,
	const wasmtime_component_t *, wasmtime_component_instance_t *);
bool wasmtime_component_instance_get_func(const wasmtime_component_instance_t *, wasmtime_context_t *,
	const wasmtime_component_export_index_t *, wasmtime_component_func_t *);
wasmtime_error_t *wasmtime_component_func_call(const wasmtime_component_func_t *, wasmtime_context_t *,
	const wasmtime_component_val_t *, size_t, wasmtime_component_val_t *, size_t);

/* Bits of wasi_config_preopen_dir. */
enum { READ = 1, WRITE = 2 };

struct component {
	wasm_engine_t *engine;
	wasmtime_component_t *component;
	wasmtime_component_linker_t *linker;
	wasmtime_component_export_index_t *run;
};

static wasm_engine_t *engine_new(size_t stack)
{
	wasm_config_t *config = wasm_config_new();
	wasmtime_config_wasm_component_model_set(config, true);
	wasmtime_config_max_wasm_stack_set(config, stack);
	return wasm_engine_new_with_config(config);
}

static char *message(wasmtime_error_t *error)
{
	wasm_byte_vec_t text;
	char *copy;

	wasmtime_error_message(error, &text);
	copy = strndup(text.data, text.size);
	wasm_byte_vec_delete(&text);
	wasmtime_error_delete(error);
	return copy;
}

char *component_compile(const void *wasm, size_t size, size_t stack, char **code, size_t *length)
{
	wasm_engine_t *engine = engine_new(stack);
	wasmtime_component_t *component;
	wasm_byte_vec_t bytes;
	wasmtime_error_t *error = wasmtime_component_new(engine, wasm, size, &component);

	if (!error) {
		error = wasmtime_component_serialize(component, &bytes);
		wasmtime_component_delete(component);
	}
	wasm_engine_delete(engine);
	if (error)
		return message(error);
	*code = bytes.data;
	*length = bytes.size;
	return NULL;
}

void component_free(char *code, size_t length)
{
	wasm_byte_vec_t bytes = {length, code};

	wasm_byte_vec_delete(&bytes);
}

/* The function that makes a component a program, of any 0.2 of WASI. */
static wasmtime_component_export_index_t *find_run(wasmtime_component_t *component)
{
	for (int patch = 0; patch < 20; patch++) {
		wasmtime_component_export_index_t *interface, *run;
		char name[32];
		int length = snprintf(name, sizeof name, "wasi:cli/run@0.2.%d", patch);

		interface = wasmtime_component_get_export_index(component, NULL, name, length);
		if (!interface)
			continue;
		run = wasmtime_component_get_export_index(component, interface, "run", 3);
		if (run)
			return run;
	}
	return NULL;
}

char *component_load(const char *path, size_t stack, struct component **out)
{
	struct component *c = calloc(1, sizeof *c);
	wasmtime_error_t *error;

	if (!c)
		return strdup("out of memory");
	c->engine = engine_new(stack);
	c->linker = wasmtime_component_linker_new(c->engine);
	error = wasmtime_component_linker_add_wasip2(c->linker);
	if (!error)
		error = wasmtime_component_deserialize_file(c->engine, path, &c->component);
	if (error)
		return message(error);
	c->run = find_run(c->component);
	if (!c->run)
		return strdup("component does not export wasi:cli/run@0.2: it is no program");
	*out = c;
	return NULL;
}

static char *configure(wasmtime_context_t *context, const struct process *p)
{
	wasi_config_t *wasi = wasi_config_new();
	wasmtime_error_t *error;

	wasi_config_inherit_stdin(wasi);
	wasi_config_inherit_stdout(wasi);
	wasi_config_inherit_stderr(wasi);
	if (!wasi_config_set_argv(wasi, p->argc, p->argv) || !wasi_config_set_env(wasi, p->envc, p->keys, p->values))
		return strdup("arguments or environment are not UTF-8");
	for (size_t i = 0; i < p->dirc; i++) {
		const struct directory *d = &p->dirs[i];
		size_t rights = d->read_only ? READ : READ | WRITE;

		if (!wasi_config_preopen_dir(wasi, d->host, d->guest, rights, rights)) {
			char *text = NULL;

			if (asprintf(&text, "open %s for the component: it cannot be opened", d->host) < 0)
				return strdup("out of memory");
			return text;
		}
	}
	error = wasmtime_context_set_wasi(context, wasi);
	return error ? message(error) : NULL;
}

char *component_run(struct component *c, const struct process *p, int *status)
{
	wasmtime_store_t *store = wasmtime_store_new(c->engine, NULL, NULL);
	wasmtime_context_t *context = wasmtime_store_context(store);
	wasmtime_component_instance_t instance;
	wasmtime_component_func_t run;
	wasmtime_component_val_t result = {0};
	wasmtime_error_t *error;
	char *text = configure(context, p);

	if (text)
		return text;
	if (p->memory > 0)
		wasmtime_store_limiter(store, p->memory, -1, -1, -1, -1);
	error = wasmtime_component_linker_instantiate(c->linker, context, c->component, &instance);
	if (error)
		return message(error);
	if (!wasmtime_component_instance_get_func(&instance, context, c->run, &run))
		return strdup("component does not export the function wasi:cli/run.run");
	error = wasmtime_component_func_call(&run, context, NULL, 0, &result, 1);
	if (!error) {
		*status = result.of.result.is_ok ? 0 : 1;
		return NULL;
	}
	if (wasmtime_error_exit_status(error, status)) {
		wasmtime_error_delete(error);
		return NULL;
	}
	return message(error);
}
