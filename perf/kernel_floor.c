// Calls the kernel that the load launches, compiled apart, as a graph of 10,000 would: each call
// through a table, from one buffer to the next. Prints the median of microseconds for each call.

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CALLS = 10000, ROUNDS = 301, BUFFER_BYTES = 128, START = 1000 };

void tiny(int *restrict to, int *restrict from);

struct call {
  void (*kernel)(int *restrict, int *restrict);
  int *to, *from;
};

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

int main(void) {
  static struct call calls[CALLS];
  static double times[ROUNDS];
  char *memory = aligned_alloc(4096, (size_t)BUFFER_BYTES * (CALLS + 32));
  if (!memory) return 1;
  for (size_t i = 0; i < CALLS; i++)
    calls[i] = (struct call){tiny, (int *)(memory + (i + 1) * BUFFER_BYTES),
                             (int *)(memory + i * BUFFER_BYTES)};
  *(int *)memory = START;
  for (int round = 0; round < ROUNDS; round++) {
    double began = seconds();
    for (int i = 0; i < CALLS; i++) calls[i].kernel(calls[i].to, calls[i].from);
    times[round] = seconds() - began;
  }
  if (*calls[CALLS - 1].to != START + CALLS) return 1;
  qsort(times, ROUNDS, sizeof *times, ascending);
  printf("{\"floor_kernel_us\": %.6f}\n", times[ROUNDS / 2] * 1e6 / CALLS);
  free(memory);
  return 0;
}
