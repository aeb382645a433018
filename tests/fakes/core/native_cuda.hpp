// What CUDA C has beyond C++.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
#define __syncthreads() fake_barrier()

#define FAKE_VECTOR(T, name) \
  struct __align__(2 * sizeof(T)) name##2 { T x, y; }; \
  struct name##3 { T x, y, z; }; \
  struct __align__(4 * sizeof(T)) name##4 { T x, y, z, w; }; \
  static inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; } \
  static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
FAKE_VECTOR(float, float)
FAKE_VECTOR(int, int)
FAKE_VECTOR(unsigned, uint)
FAKE_VECTOR(short, short)
FAKE_VECTOR(unsigned short, ushort)
FAKE_VECTOR(signed char, char)
FAKE_VECTOR(unsigned char, uchar)
FAKE_VECTOR(long long, longlong)
FAKE_VECTOR(double, double)

template <class To, class From> static inline To fake_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from, "bits of the same size");
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline float __int_as_float(int bits) { return fake_bits<float>(bits); }

// Rounds to the nearest, ties to even, with a mantissa of `keep` bits.
struct half {
  unsigned short bits;
  half() = default;
  half(float value) {
    unsigned in = fake_bits<unsigned>(value), sign = in >> 16 & 0x8000, rest = in & 0x7fffffff;
    if (rest > 0x7f800000) { bits = sign | 0x7e00; return; }
    if (rest >= 0x477ff000) { bits = sign | 0x7c00; return; }
    if (rest < 0x38800000) {
      // The sum has the units that a subnormal number has.
      float sum = fake_bits<float>(rest) + 0.5f;
      bits = sign | (fake_bits<unsigned>(sum) - 0x3f000000);
      return;
    }
    bits = sign | (rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13;
  }
  operator float() const {
    unsigned sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
    if (rest >= 0x7c00) return fake_bits<float>(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    float value = fake_bits<float>(rest << 13) * 5.192296858534828e33f;
    return fake_bits<float>(sign | fake_bits<unsigned>(value));
  }
  half &operator+=(float other) { return *this = *this + other; }
  half &operator*=(float other) { return *this = *this * other; }
};
struct nv_bfloat16 {
  unsigned short bits;
  nv_bfloat16() = default;
  nv_bfloat16(float value) {
    unsigned in = fake_bits<unsigned>(value);
    bits = value != value ? 0x7fff : (in + 0x7fff + (in >> 16 & 1)) >> 16;
  }
  operator float() const { return fake_bits<float>((unsigned)bits << 16); }
};
struct __align__(4) half2 { half x, y; };
static inline half2 make_half2(half x, half y) { return {x, y}; }
struct __align__(4) nv_bfloat162 { nv_bfloat16 x, y; };
static inline nv_bfloat162 make_nv_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
static inline float hsin(float x) { return sinf(x); }
static inline float hlog2(float x) { return log2f(x); }
static inline float hexp2(float x) { return exp2f(x); }
static inline float hsqrt(float x) { return sqrtf(x); }
static inline float hrcp(float x) { return 1 / x; }
static inline float htrunc(float x) { return truncf(x); }
