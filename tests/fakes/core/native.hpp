// What a source for a GPU needs to be compiled for the host and run there, thread by thread.
//
// Each thread of a block is a fiber that runs up to the next barrier; without barriers in the
// source a thread is a plain call. Shared memory is static, because one block runs at a time.

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

struct fake_sizes { unsigned x, y, z; };
static fake_sizes blockIdx, threadIdx, blockDim, gridDim;

// The fibers of a block.
static const size_t FAKE_STACK_BYTES = 128 << 10;
static ucontext_t fake_main, fake_threads[1024];
static bool fake_done[1024];
static unsigned fake_current;
static void (*fake_body)();

static inline void fake_barrier() { swapcontext(&fake_threads[fake_current], &fake_main); }

static void fake_fiber() {
  fake_body();
  fake_done[fake_current] = true;
}

static fake_sizes fake_place(unsigned index) {
  unsigned rest = index / blockDim.x;
  return {index % blockDim.x, rest % blockDim.y, rest / blockDim.y};
}

static void fake_block_with_barriers(unsigned threads, char *stacks) {
  for (unsigned i = 0; i < threads; i++) {
    ucontext_t &thread = fake_threads[i];
    getcontext(&thread);
    thread.uc_stack.ss_sp = stacks + i * FAKE_STACK_BYTES;
    thread.uc_stack.ss_size = FAKE_STACK_BYTES;
    thread.uc_link = &fake_main;
    fake_done[i] = false;
    makecontext(&thread, fake_fiber, 0);
  }
  for (bool left = true; left;) {
    left = false;
    for (unsigned i = 0; i < threads; i++) {
      if (fake_done[i]) continue;
      fake_current = i;
      threadIdx = fake_place(i);
      swapcontext(&fake_main, &fake_threads[i]);
      left |= !fake_done[i];
    }
  }
}

static void fake_run(void (*body)(), const fake_sizes *grid, const fake_sizes *block, bool barriers) {
  static char *stacks;
  unsigned threads = block->x * block->y * block->z;
  fake_body = body;
  gridDim = *grid;
  blockDim = *block;
  if (barriers && !stacks) {
    stacks = (char *)mmap(0, 1024 * FAKE_STACK_BYTES, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (stacks == MAP_FAILED) abort();
  }
  for (unsigned z = 0; z < grid->z; z++)
    for (unsigned y = 0; y < grid->y; y++)
      for (unsigned x = 0; x < grid->x; x++) {
        blockIdx = {x, y, z};
        if (barriers) {
          fake_block_with_barriers(threads, stacks);
        } else {
          for (unsigned i = 0; i < threads; i++) {
            threadIdx = fake_place(i);
            body();
          }
        }
      }
}

// Calls a kernel with its arguments as they are packed.
template <class... T> struct fake_types {};
static const char *fake_arguments;
template <class F, class... Done> static void fake_call(F f, size_t, fake_types<>, Done... done) {
  f(done...);
}
template <class F, class T, class... Rest, class... Done>
static void fake_call(F f, size_t at, fake_types<T, Rest...>, Done... done) {
  at = (at + sizeof(T) - 1) / sizeof(T) * sizeof(T);
  T value;
  memcpy(&value, fake_arguments + at, sizeof value);
  fake_call(f, at + sizeof value, fake_types<Rest...>(), done..., value);
}
template <class... T> static void fake_apply(void (*f)(T...)) { fake_call(f, 0, fake_types<T...>()); }
