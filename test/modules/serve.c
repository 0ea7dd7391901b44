// serve answers each TCP connection to the port that it is given with "served\n".
// WASI preview 1 has no sockets to open: these calls are WasmEdge's own.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define IMPORT(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(name)))

struct address { const uint8_t *bytes; uint32_t size; };
struct text { const char *bytes; uint32_t size; };

IMPORT("sock_open") uint32_t sock_open(uint32_t family, uint32_t kind, uint32_t *fd);
IMPORT("sock_bind") uint32_t sock_bind(uint32_t fd, struct address *address, uint32_t port);
IMPORT("sock_listen") uint32_t sock_listen(uint32_t fd, uint32_t backlog);
IMPORT("sock_accept") uint32_t accept_one(uint32_t fd, uint32_t flags, uint32_t *connection);
IMPORT("sock_send") uint32_t send_text(uint32_t fd, struct text *texts, uint32_t count, uint32_t flags, uint32_t *sent);
IMPORT("fd_close") uint32_t close_one(uint32_t fd);

enum { inet4 = 1, stream = 2 };

static void must(const char *what, uint32_t error) {
	if (error != 0) {
		fprintf(stderr, "serve: %s: error %u\n", what, (unsigned)error);
		exit(1);
	}
}

int main(int argc, char **argv) {
	uint8_t any[4] = {0, 0, 0, 0};
	struct address address = {any, sizeof any};
	struct text text = {"served\n", 7};
	uint32_t fd, connection, sent;

	must("open", sock_open(inet4, stream, &fd));
	must("bind", sock_bind(fd, &address, argc > 1 ? (uint32_t)atoi(argv[1]) : 0));
	must("listen", sock_listen(fd, 16));
	puts("listening");
	fflush(stdout);
	for (;;) {
		must("accept", accept_one(fd, 0, &connection));
		must("send", send_text(connection, &text, 1, 0, &sent));
		must("close", close_one(connection));
	}
}
