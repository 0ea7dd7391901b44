/*
 * compute does arithmetic, and nothing else, for some seconds: what engines are
 * compared by, with each other and with the same program built for the host.
 * It counts points of the Mandelbrot set and primes, so that floating point,
 * branches and memory all have their part.
 */
#include <stdio.h>
#include <stdlib.h>

static long mandelbrot(int size)
{
	long inside = 0;
	for (int y = 0; y < size; y++)
		for (int x = 0; x < size; x++) {
			double cr = 2.0 * x / size - 1.5, ci = 2.0 * y / size - 1.0;
			double zr = 0, zi = 0;
			int i = 0;
			for (; i < 100 && zr * zr + zi * zi <= 4; i++) {
				double t = zr * zr - zi * zi + cr;
				zi = 2 * zr * zi + ci;
				zr = t;
			}
			inside += i == 100;
		}
	return inside;
}

/* sieve returns the number of primes below n. */
static int sieve(int n)
{
	unsigned char *composite = calloc(n, 1);
	int count = 0;
	if (!composite)
		return -1;
	for (int i = 2; i < n; i++) {
		if (composite[i])
			continue;
		count++;
		for (long long j = (long long)i * i; j < n; j += i)
			composite[j] = 1;
	}
	free(composite);
	return count;
}

int main(int argc, char **argv)
{
	int scale = argc > 1 ? atoi(argv[1]) : 1;
	printf("%ld %d\n", mandelbrot(500 * scale), sieve(4000000 * scale));
	return 0;
}
