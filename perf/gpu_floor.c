// What the driver alone does on a GPU, with no server: the floors of perf/gpu, and what a fault in
// one context does to another. Needs nothing but the driver's library, which it loads by its name.
//
//   gpu_floor info
//   gpu_floor copy BYTES REPEATS         from and to pinned memory
//   gpu_floor launch REPEATS             a small kernel, waited for
//   gpu_floor graph KERNELS ELEMENTS REPEATS
//   gpu_floor fault KERNEL               two contexts; the kernel, named below, runs in the first
//
// Prints lines of a name and a value; a call that fails prints `error` and ends with status 1.

#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { GROUP = 256, SPIN = 1, NON_BLOCKING = 1, PORTABLE = 1, WAIT_SECONDS = 10 };
enum { ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76 };
enum { JIT_LOG = 5, JIT_LOG_BYTES = 6, TIMED = 0 };

typedef struct context *Context;
typedef struct event *Event;
typedef struct exec *Exec;
typedef struct function *Function;
typedef struct graph *Graph;
typedef struct module *Module;
typedef struct node *Node;
typedef struct stream *Stream;
typedef unsigned long long Pointer;

// CUDA_KERNEL_NODE_PARAMS_v2.
struct kernel_node {
  Function function;
  unsigned grid[3], block[3], shared_bytes;
  void **parameters, **extra;
  void *kernel, *context;
};

// Calls by their names; where an interface has versions, the name says which.
#define CALLS(X)                                                                     \
  X(cuCtxCreate_v2, (Context *, unsigned, int))                                      \
  X(cuCtxDestroy_v2, (Context))                                                      \
  X(cuCtxSetCurrent, (Context))                                                      \
  X(cuDeviceGet, (int *, int))                                                       \
  X(cuDeviceGetAttribute, (int *, int, int))                                         \
  X(cuDeviceGetName, (char *, int, int))                                             \
  X(cuDeviceGetPCIBusId, (char *, int, int))                                         \
  X(cuDeviceTotalMem_v2, (size_t *, int))                                            \
  X(cuDriverGetVersion, (int *))                                                     \
  X(cuEventCreate, (Event *, unsigned))                                              \
  X(cuEventDestroy_v2, (Event))                                                      \
  X(cuEventElapsedTime, (float *, Event, Event))                                     \
  X(cuEventRecord, (Event, Stream))                                                  \
  X(cuGetErrorName, (int, const char **))                                            \
  X(cuGetErrorString, (int, const char **))                                          \
  X(cuGraphAddKernelNode_v2, (Node *, Graph, const Node *, size_t, const void *))    \
  X(cuGraphCreate, (Graph *, unsigned))                                              \
  X(cuGraphDestroy, (Graph))                                                         \
  X(cuGraphExecDestroy, (Exec))                                                      \
  X(cuGraphInstantiateWithFlags, (Exec *, Graph, unsigned long long))                \
  X(cuGraphLaunch, (Exec, Stream))                                                   \
  X(cuInit, (unsigned))                                                              \
  X(cuLaunchKernel, (Function, unsigned, unsigned, unsigned, unsigned, unsigned,     \
                     unsigned, unsigned, Stream, void **, void **))                  \
  X(cuMemAlloc_v2, (Pointer *, size_t))                                              \
  X(cuMemFree_v2, (Pointer))                                                         \
  X(cuMemHostRegister_v2, (void *, size_t, unsigned))                                \
  X(cuMemHostUnregister, (void *))                                                   \
  X(cuMemcpyDtoHAsync_v2, (void *, Pointer, size_t, Stream))                         \
  X(cuMemcpyHtoDAsync_v2, (Pointer, const void *, size_t, Stream))                   \
  X(cuModuleGetFunction, (Function *, Module, const char *))                         \
  X(cuModuleLoadDataEx, (Module *, const void *, unsigned, int *, void **))          \
  X(cuModuleUnload, (Module))                                                        \
  X(cuStreamCreate, (Stream *, unsigned))                                            \
  X(cuStreamDestroy_v2, (Stream))                                                    \
  X(cuStreamQuery, (Stream))                                                         \
  X(cuStreamSynchronize, (Stream))

#define DECLARE(name, parameters) static int(*name) parameters;
CALLS(DECLARE)

// The driver compiles it. Addresses are: 16, where no memory is; one that is not a multiple of the
// size; 32 TiB beyond the buffer.
#define HEAD(name)                                                                       \
  ".visible .entry " name "(\n.param .u64 data0\n)\n.maxntid 256\n{\n.reg .pred %p<2>;\n" \
  ".reg .u32 %r<4>;\n.reg .u64 %d<4>;\nld.param.u64 %d0, [data0];\n"
static const char SOURCE[] =
    ".version 7.5\n.target sm_70\n.address_size 64\n"
    ".visible .entry add_integers(\n.param .u64 data0,\n.param .u64 data1,\n.param .u64 data2\n)\n"
    ".maxntid 256\n{\n.reg .u32 %r<8>;\n.reg .u64 %d<4>;\n"
    "ld.param.u64 %d0, [data0];\nld.param.u64 %d1, [data1];\nld.param.u64 %d2, [data2];\n"
    "mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %ntid.x;\nmov.u32 %r3, %tid.x;\n"
    "mad.lo.u32 %r4, %r1, %r2, %r3;\nmul.wide.u32 %d3, %r4, 4;\n"
    "add.u64 %d0, %d0, %d3;\nadd.u64 %d1, %d1, %d3;\nadd.u64 %d2, %d2, %d3;\n"
    "ld.global.u32 %r5, [%d1];\nld.global.u32 %r6, [%d2];\nadd.u32 %r7, %r5, %r6;\n"
    "st.global.u32 [%d0], %r7;\nret;\n}\n"
    HEAD("illegal_address_written")
    "and.b64 %d1, %d0, 15;\nst.volatile.global.u32 [%d1+16], 1;\nret;\n}\n"
    HEAD("illegal_address_read")
    "mov.u64 %d1, 35184372088832;\nadd.u64 %d1, %d0, %d1;\nld.volatile.global.u32 %r1, [%d1];\n"
    "st.global.u32 [%d0], %r1;\nret;\n}\n"
    HEAD("misaligned_address")
    "st.volatile.global.u32 [%d0+1], 1;\nret;\n}\n"
    HEAD("illegal_instruction_trap")
    "trap;\nret;\n}\n"
    HEAD("hang")
    "AGAIN:\nld.volatile.global.u32 %r1, [%d0];\nsetp.ne.u32 %p0, %r1, 123456789;\n"
    "@%p0 bra AGAIN;\nret;\n}\n"
    ".extern .func __assertfail(\n.param .b64 message,\n.param .b64 file,\n.param .b32 line,\n"
    ".param .b64 function,\n.param .b64 size\n);\n"
    ".global .align 1 .b8 text[6] = {102, 97, 108, 115, 101, 0};\n"
    HEAD("assert_fails")
    "mov.u64 %d1, text;\ncvta.global.u64 %d2, %d1;\nmov.u64 %d3, 1;\nmov.u32 %r1, 1;\n{\n"
    ".param .b64 a;\nst.param.b64 [a+0], %d2;\n.param .b64 b;\nst.param.b64 [b+0], %d2;\n"
    ".param .b32 c;\nst.param.b32 [c+0], %r1;\n.param .b64 d;\nst.param.b64 [d+0], %d2;\n"
    ".param .b64 e;\nst.param.b64 [e+0], %d3;\ncall.uni __assertfail, (a, b, c, d, e);\n}\n"
    "ret;\n}\n";

static const char *words(int code) {
  static char said[512];
  const char *name = "?", *text = "?";
  if (code == 0) return "ok";
  cuGetErrorName(code, &name);
  cuGetErrorString(code, &text);
  snprintf(said, sizeof said, "%d %s (%s)", code, name, text);
  return said;
}

static void must(int code, const char *call) {
  if (code == 0) return;
  printf("error %s: %s\n", call, words(code));
  exit(1);
}
#define MUST(call) must(call, #call)

static void say(const char *name, double value) { printf("%s %.6g\n", name, value); }

static void tell(const char *name, const char *value) {
  printf("%s %s\n", name, value);
  fflush(stdout);
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double at_share(double *times, size_t count, double share) {
  qsort(times, count, sizeof *times, ascending);
  size_t at = (size_t)((double)count * share);
  return times[at < count ? at : count - 1];
}

static void load_driver(void) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (!library) library = dlopen("libcuda.so", RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    printf("error %s\n", dlerror());
    exit(1);
  }
#define LOOK_UP(name, parameters)                                   \
  if (!((*(void **)&name) = dlsym(library, #name))) {               \
    printf("error the driver has no %s\n", #name);                  \
    exit(1);                                                        \
  }
  CALLS(LOOK_UP)
}

// A context with a stream, the kernels, and a buffer.
struct place {
  Context context;
  Stream stream;
  Module module;
  Pointer buffer;
  Function add;
};

enum { BUFFER_BYTES = GROUP * 4 };

static int device(void) {
  int found;
  MUST(cuInit(0));
  MUST(cuDeviceGet(&found, 0));
  return found;
}

static void copy_in(struct place *place, Pointer to, const void *from, size_t bytes) {
  MUST(cuMemcpyHtoDAsync_v2(to, from, bytes, place->stream));
  MUST(cuStreamSynchronize(place->stream));
}

static void load_module(struct place *place) {
  static char log[4096];
  int options[] = {JIT_LOG, JIT_LOG_BYTES};
  void *values[] = {log, (void *)(uintptr_t)sizeof log};
  int code = cuModuleLoadDataEx(&place->module, SOURCE, 2, options, values);
  if (code) fprintf(stderr, "%s\n", log);
  must(code, "cuModuleLoadDataEx");
  MUST(cuModuleGetFunction(&place->add, place->module, "add_integers"));
}

static void open_place(struct place *place) {
  MUST(cuCtxCreate_v2(&place->context, SPIN, device()));
  MUST(cuCtxSetCurrent(place->context));
  MUST(cuStreamCreate(&place->stream, NON_BLOCKING));
  load_module(place);
  MUST(cuMemAlloc_v2(&place->buffer, BUFFER_BYTES));
}

static void close_place(struct place *place) {
  MUST(cuMemFree_v2(place->buffer));
  MUST(cuModuleUnload(place->module));
  MUST(cuStreamDestroy_v2(place->stream));
  MUST(cuCtxDestroy_v2(place->context));
}

static int launch(struct place *place, Function function, Pointer *arguments, size_t count,
                  unsigned groups) {
  size_t bytes = count * sizeof *arguments;
  void *extra[] = {(void *)1, arguments, (void *)2, &bytes, (void *)0};
  return cuLaunchKernel(function, groups, 1, 1, GROUP, 1, 1, 0, place->stream, NULL, extra);
}

static void *pinned(size_t bytes) {
  void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (memory == MAP_FAILED) {
    printf("error no memory\n");
    exit(1);
  }
  MUST(cuMemHostRegister_v2(memory, bytes, PORTABLE));
  return memory;
}

static void unpin(void *memory, size_t bytes) {
  MUST(cuMemHostUnregister(memory));
  munmap(memory, bytes);
}

static void info(void) {
  int found = device(), version, major, minor;
  char name[256], bus[64];
  size_t bytes;
  MUST(cuDriverGetVersion(&version));
  MUST(cuDeviceGetName(name, sizeof name, found));
  MUST(cuDeviceGetPCIBusId(bus, sizeof bus, found));
  MUST(cuDeviceTotalMem_v2(&bytes, found));
  MUST(cuDeviceGetAttribute(&major, ATTRIBUTE_MAJOR, found));
  MUST(cuDeviceGetAttribute(&minor, ATTRIBUTE_MINOR, found));
  printf("cuda_version %d.%d\n", version / 1000, version % 1000 / 10);
  printf("device %s\narch sm_%d%d\npci %s\n", name, major, minor, bus);
  say("memory_mib", (double)(bytes >> 20));
}

static void copies(size_t bytes, size_t repeats) {
  struct place place;
  open_place(&place);
  Pointer memory;
  MUST(cuMemAlloc_v2(&memory, bytes));
  unsigned char *host = pinned(bytes);
  double *in = calloc(repeats, sizeof *in), *out = calloc(repeats, sizeof *out);
  memset(host, 5, bytes);
  copy_in(&place, memory, host, bytes);
  for (size_t i = 0; i < repeats; i++) {
    memset(host, (int)(i & 127), bytes);
    double began = seconds();
    copy_in(&place, memory, host, bytes);
    in[i] = seconds() - began;
    host[0] = host[bytes - 1] = 255;
    began = seconds();
    MUST(cuMemcpyDtoHAsync_v2(host, memory, bytes, place.stream));
    MUST(cuStreamSynchronize(place.stream));
    out[i] = seconds() - began;
    if (host[0] != (i & 127) || host[bytes - 1] != (i & 127)) {
      printf("error the bytes that came back are not those that were sent\n");
      exit(1);
    }
  }
  say("pinned_in_gbs", (double)bytes / at_share(in, repeats, 0.5) / 1e9);
  say("pinned_out_gbs", (double)bytes / at_share(out, repeats, 0.5) / 1e9);
  free(in);
  free(out);
  unpin(host, bytes);
  MUST(cuMemFree_v2(memory));
  close_place(&place);
}

static void launches(size_t repeats) {
  struct place place;
  open_place(&place);
  uint32_t *host = pinned(BUFFER_BYTES);
  for (size_t i = 0; i < GROUP; i++) host[i] = 1;
  copy_in(&place, place.buffer, host, BUFFER_BYTES);
  Pointer arguments[] = {place.buffer, place.buffer, place.buffer};
  double *plain = calloc(repeats, sizeof *plain), *timed = calloc(repeats, sizeof *timed);
  Event from, to;
  MUST(cuEventCreate(&from, TIMED));
  MUST(cuEventCreate(&to, TIMED));
  for (size_t i = 0; i < repeats + repeats / 10; i++) {
    size_t at = i < repeats / 10 ? 0 : i - repeats / 10;
    double began = seconds();
    MUST(launch(&place, place.add, arguments, 3, 1));
    MUST(cuStreamSynchronize(place.stream));
    plain[at] = seconds() - began;
    float milliseconds;
    began = seconds();
    MUST(cuEventRecord(from, place.stream));
    MUST(launch(&place, place.add, arguments, 3, 1));
    MUST(cuEventRecord(to, place.stream));
    MUST(cuStreamSynchronize(place.stream));
    MUST(cuEventElapsedTime(&milliseconds, from, to));
    timed[at] = seconds() - began;
  }
  say("launch_and_wait_p50_us", at_share(plain, repeats, 0.5) * 1e6);
  say("launch_and_wait_p99_us", at_share(plain, repeats, 0.99) * 1e6);
  say("timed_launch_and_wait_p50_us", at_share(timed, repeats, 0.5) * 1e6);
  MUST(cuEventDestroy_v2(from));
  MUST(cuEventDestroy_v2(to));
  free(plain);
  free(timed);
  unpin(host, BUFFER_BYTES);
  close_place(&place);
}

// Kernels that each add the two buffers before theirs, as the load's graph has them.
static Graph record(struct place *place, Pointer memory, size_t kernels, size_t elements) {
  Graph graph;
  Node before = NULL;
  MUST(cuGraphCreate(&graph, 0));
  for (size_t i = 2; i < kernels + 2; i++) {
    size_t each = elements * 4;
    Pointer arguments[] = {memory + i * each, memory + (i - 1) * each, memory + (i - 2) * each};
    size_t bytes = sizeof arguments;
    void *extra[] = {(void *)1, arguments, (void *)2, &bytes, (void *)0};
    struct kernel_node node = {.function = place->add, .grid = {(unsigned)(elements / GROUP), 1, 1},
                               .block = {GROUP, 1, 1}, .extra = extra};
    Node added;
    MUST(cuGraphAddKernelNode_v2(&added, graph, before ? &before : NULL, before ? 1 : 0, &node));
    before = added;
  }
  return graph;
}

static void graphs(size_t kernels, size_t elements, size_t repeats) {
  struct place place;
  open_place(&place);
  size_t bytes = elements * 4;
  Pointer memory;
  MUST(cuMemAlloc_v2(&memory, bytes * (kernels + 2)));
  uint32_t *host = pinned(bytes);
  for (size_t i = 0; i < elements; i++) host[i] = 1;
  copy_in(&place, memory, host, bytes);
  copy_in(&place, memory + bytes, host, bytes);
  Graph graph = record(&place, memory, kernels, elements);
  Exec exec;
  MUST(cuGraphInstantiateWithFlags(&exec, graph, 0));
  Event from, to;
  MUST(cuEventCreate(&from, TIMED));
  MUST(cuEventCreate(&to, TIMED));
  double *wall = calloc(repeats, sizeof *wall), *within = calloc(repeats, sizeof *within);
  for (size_t i = 0; i < repeats + 3; i++) {
    size_t at = i < 3 ? 0 : i - 3;
    float milliseconds;
    double began = seconds();
    MUST(cuEventRecord(from, place.stream));
    MUST(cuGraphLaunch(exec, place.stream));
    MUST(cuEventRecord(to, place.stream));
    MUST(cuStreamSynchronize(place.stream));
    wall[at] = seconds() - began;
    MUST(cuEventElapsedTime(&milliseconds, from, to));
    within[at] = milliseconds / 1e3;
  }
  MUST(cuMemcpyDtoHAsync_v2(host, memory + bytes * (kernels + 1), bytes, place.stream));
  MUST(cuStreamSynchronize(place.stream));
  uint32_t older = 1, newer = 1;
  for (size_t i = 0; i < kernels; i++) {
    uint32_t sum = older + newer;
    older = newer;
    newer = sum;
  }
  if (host[0] != newer || host[elements - 1] != newer) {
    printf("error the graph's result is %u, not %u\n", host[0], newer);
    exit(1);
  }
  say("graph_p50_us", at_share(wall, repeats, 0.5) * 1e6);
  say("graph_device_us", at_share(within, repeats, 0.5) * 1e6);
  free(wall);
  free(within);
  MUST(cuEventDestroy_v2(from));
  MUST(cuEventDestroy_v2(to));
  MUST(cuGraphExecDestroy(exec));
  MUST(cuGraphDestroy(graph));
  unpin(host, bytes);
  MUST(cuMemFree_v2(memory));
  close_place(&place);
}

// Waits for a stream without the driver's blocking; -1 says that it is still busy.
static int finished(Stream stream, double limit) {
  double until = seconds() + limit;
  int code;
  do code = cuStreamQuery(stream);
  while (code == 600 && seconds() < until);
  return code == 600 ? -1 : code;
}

static const char *in_words(int code) { return code == -1 ? "still busy" : words(code); }

// What still works in a context: memory that it had, a kernel.
static void examine(const char *when, struct place *place, uint32_t *host) {
  char name[64];
  int code = cuCtxSetCurrent(place->context);
  memset(host, 0, BUFFER_BYTES);
  if (!code) code = cuMemcpyDtoHAsync_v2(host, place->buffer, BUFFER_BYTES, place->stream);
  if (!code) code = finished(place->stream, WAIT_SECONDS);
  snprintf(name, sizeof name, "%s_memory", when);
  tell(name, code ? in_words(code) : host[0] == 7 && host[GROUP - 1] == 7 ? "ok" : "WRONG BYTES");
  Pointer arguments[] = {place->buffer, place->buffer, place->buffer};
  code = launch(place, place->add, arguments, 3, 1);
  if (!code) code = finished(place->stream, WAIT_SECONDS);
  snprintf(name, sizeof name, "%s_launch", when);
  tell(name, in_words(code));
  // Back to what it was.
  for (size_t i = 0; i < GROUP; i++) host[i] = 7;
  code = code ? code : cuMemcpyHtoDAsync_v2(place->buffer, host, BUFFER_BYTES, place->stream);
  if (!code) code = finished(place->stream, WAIT_SECONDS);
}

static void *destroy(void *context) {
  return (void *)(intptr_t)cuCtxDestroy_v2(context);
}

// A context whose kernel never ends may not be destroyed while it runs: not waited for for ever.
static void destroy_first(Context context) {
  pthread_t thread;
  struct timespec until;
  void *code;
  double began = seconds();
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_sec += WAIT_SECONDS;
  pthread_create(&thread, NULL, destroy, context);
  if (pthread_timedjoin_np(thread, &code, &until) != 0) {
    tell("first_destroyed", "never: the call did not return");
    return;
  }
  tell("first_destroyed", words((int)(intptr_t)code));
  say("first_destroyed_seconds", seconds() - began);
}

static void renew(uint32_t *host) {
  struct place place;
  int code = cuCtxCreate_v2(&place.context, SPIN, device());
  tell("third_created", words(code));
  if (code) return;
  code = cuStreamCreate(&place.stream, NON_BLOCKING);
  if (!code) code = cuMemAlloc_v2(&place.buffer, BUFFER_BYTES);
  tell("third_memory_made", words(code));
  if (code) return;
  load_module(&place);
  for (size_t i = 0; i < GROUP; i++) host[i] = 7;
  copy_in(&place, place.buffer, host, BUFFER_BYTES);
  examine("third", &place, host);
}

static void fault(const char *kernel) {
  struct place first, second;
  Function function;
  uint32_t *host;
  open_place(&first);
  open_place(&second);
  host = pinned(BUFFER_BYTES);
  for (size_t i = 0; i < GROUP; i++) host[i] = 7;
  copy_in(&second, second.buffer, host, BUFFER_BYTES);
  examine("before", &second, host);
  MUST(cuCtxSetCurrent(first.context));
  copy_in(&first, first.buffer, host, BUFFER_BYTES);
  MUST(cuModuleGetFunction(&function, first.module, kernel));
  MUST(launch(&first, function, &first.buffer, 1, 1));
  tell("fault", in_words(finished(first.stream, 2)));
  examine("second_after_fault", &second, host);
  destroy_first(first.context);
  examine("second_after_destruction", &second, host);
  renew(host);
  tell("end", "reached");
  // Whatever is left may not be in a state in which it could be ended in order.
  fflush(stdout);
  _exit(0);
}

static size_t number(int count, char **values, int at) {
  if (at >= count) {
    fprintf(stderr, "an argument is missing\n");
    exit(2);
  }
  return strtoull(values[at], NULL, 10);
}

int main(int count, char **values) {
  const char *what = count > 1 ? values[1] : "";
  load_driver();
  if (!strcmp(what, "info")) info();
  else if (!strcmp(what, "copy")) copies(number(count, values, 2), number(count, values, 3));
  else if (!strcmp(what, "launch")) launches(number(count, values, 2));
  else if (!strcmp(what, "graph"))
    graphs(number(count, values, 2), number(count, values, 3), number(count, values, 4));
  else if (!strcmp(what, "fault") && count > 2) fault(values[2]);
  else {
    fprintf(stderr, "info, copy, launch, graph or fault\n");
    return 2;
  }
  return 0;
}
