/*
 * box is a shell and a few tools in one module, so that critest has in a Wasm
 * image what it runs in one of Linux. The tool is chosen by the name that the
 * module is called by. There are no processes in WASI: the shell runs its tools
 * itself, one after another.
 *
 * The shell knows words, quotes, ";", "&&", "||" and "while", and refuses what
 * else a shell has.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORDS 64

/* last is the status of the last command, as "$?" has it in other shells. */
static int last;

static int echo(int argc, char **argv)
{
	int i = 1, newline = 1;
	if (argc > 1 && !strcmp(argv[1], "-n")) {
		newline = 0;
		i = 2;
	}
	for (int first = i; i < argc; i++)
		printf(i > first ? " %s" : "%s", argv[i]);
	if (newline)
		putchar('\n');
	return fflush(stdout) ? 1 : 0;
}

static int pause_for(const char *time)
{
	if (strcmp(time, "infinity"))
		return sleep(strtoul(time, NULL, 10)) ? 1 : 0;
	for (;;)
		sleep(1000000);
}

static int do_sleep(int argc, char **argv) { return argc == 2 ? pause_for(argv[1]) : 2; }
static int top(int argc, char **argv) { return pause_for("infinity"); }
static int do_true(int argc, char **argv) { return 0; }
static int do_false(int argc, char **argv) { return 1; }

static int ls(int argc, char **argv)
{
	const char *path = argc > 1 && argv[argc - 1][0] != '-' ? argv[argc - 1] : ".";
	DIR *dir = opendir(path);
	struct dirent *entry;
	if (!dir) {
		perror(path);
		return 1;
	}
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			puts(entry->d_name);
	closedir(dir);
	return fflush(stdout) ? 1 : 0;
}

static int cat(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "r");
		int c;
		if (!file) {
			perror(argv[i]);
			return 1;
		}
		while ((c = getc(file)) != EOF)
			putchar(c);
		fclose(file);
	}
	return fflush(stdout) ? 1 : 0;
}

static int touch(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		FILE *file = fopen(argv[i], "a");
		if (!file || fclose(file)) {
			fprintf(stderr, "touch: %s: %s\n", argv[i], strerror(errno));
			return 1;
		}
	}
	return 0;
}

/* test knows the existence of files. */
static int test(int argc, char **argv)
{
	return argc >= 3 && (!strcmp(argv[1], "-f") || !strcmp(argv[1], "-e")) ? access(argv[2], F_OK) != 0 : 2;
}

static int do_exit(int argc, char **argv) { exit(argc > 1 ? atoi(argv[1]) : last); }

static int sh(int argc, char **argv);

static const struct {
	const char *name;
	int (*run)(int argc, char **argv);
} tools[] = {
	{"echo", echo}, {"sleep", do_sleep}, {"top", top}, {"true", do_true}, {"false", do_false}, {"ls", ls},
	{"cat", cat}, {"touch", touch}, {"test", test}, {"[", test}, {"exit", do_exit}, {"sh", sh},
};

static int run(int argc, char **argv)
{
	const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
	for (size_t i = 0; i < sizeof tools / sizeof *tools; i++)
		if (!strcmp(name, tools[i].name))
			return tools[i].run(argc, argv);
	fprintf(stderr, "box: %s: not found\n", name);
	return 127;
}

/* A script is a list of words; an operator is a word of its own. */
struct script {
	char **words;
	int count, at;
};

static const char *peek(struct script *s) { return s->at < s->count ? s->words[s->at] : NULL; }

static int is(struct script *s, const char *word) { return peek(s) && !strcmp(peek(s), word); }

static int ends(struct script *s)
{
	return !peek(s) || is(s, ";") || is(s, "&&") || is(s, "||");
}

static void list(struct script *s, int doit);

static void expect(struct script *s, const char *word)
{
	if (!is(s, word)) {
		fprintf(stderr, "box: sh: %s is expected\n", word);
		exit(2);
	}
	s->at++;
}

static void loop(struct script *s, int doit)
{
	int start = ++s->at, again;
	do {
		s->at = start;
		list(s, doit);
		again = doit && last == 0;
		expect(s, "do");
		list(s, again);
		expect(s, "done");
	} while (again);
}

static void command(struct script *s, int doit)
{
	char *argv[WORDS + 1];
	int argc = 0;
	if (is(s, "while")) {
		loop(s, doit);
		return;
	}
	for (; !ends(s); s->at++)
		if (argc < WORDS)
			argv[argc++] = s->words[s->at];
	argv[argc] = NULL;
	if (doit && argc)
		last = run(argc, argv);
}

/* list runs commands, or passes over them, up to a word of the loop's. */
static void list(struct script *s, int doit)
{
	while (peek(s) && !is(s, "do") && !is(s, "done")) {
		command(s, doit);
		while (is(s, "&&") || is(s, "||")) {
			int wanted = is(s, "&&") ? !last : last;
			s->at++;
			command(s, doit && wanted);
		}
		if (is(s, ";"))
			s->at++;
	}
}

/* script takes text apart, which it changes. */
static void script(char *text)
{
	char *words[4 * WORDS], *to = malloc(2 * strlen(text) + 2);
	struct script s = {words, 0, 0};
	char *begin = to;
	while (*text && s.count < 4 * WORDS) {
		size_t length = strspn(text, " \t\n");
		if (memchr(text, '\n', length))
			words[s.count++] = ";";
		text += length;
		length = !strncmp(text, "&&", 2) || !strncmp(text, "||", 2) ? 2 : *text == ';';
		if (length || !*text) {
			if (length)
				words[s.count++] = strcpy(to, length == 1 ? ";" : *text == '&' ? "&&" : "||");
			to += length + 1;
			text += length;
			continue;
		}
		words[s.count++] = to;
		while (*text && !strchr(" \t\n;", *text)) {
			char quote = *text == '\'' || *text == '"' ? *text++ : 0;
			if (!quote && strchr("|&<>$`(){}*?", *text)) {
				fprintf(stderr, "box: sh: %c is nothing that it knows\n", *text);
				exit(2);
			}
			while (quote && *text && *text != quote)
				*to++ = *text++;
			if (!quote)
				*to++ = *text;
			if (*text)
				text++;
		}
		*to++ = 0;
	}
	list(&s, 1);
	free(begin);
}

static int sh(int argc, char **argv)
{
	char line[4096];
	if (argc > 2 && !strcmp(argv[1], "-c")) {
		script(argv[2]);
		return last;
	}
	while (fgets(line, sizeof line, stdin))
		script(line);
	return last;
}

int main(int argc, char **argv) { return run(argc, argv); }
