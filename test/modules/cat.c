/* cat writes files to its standard output. */
#include <stdio.h>

int main(int argc, char **argv)
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
	return 0;
}
