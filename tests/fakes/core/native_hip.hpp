// What sources for HIP have beyond C++ with clang's extensions. They declare these by themselves.

#define amdgpu_flat_work_group_size(...) used
#define __builtin_amdgcn_fence(...)
#define __builtin_amdgcn_s_barrier() fake_barrier()

static inline size_t fake_part(fake_sizes sizes, unsigned axis) {
  return axis == 0 ? sizes.x : axis == 1 ? sizes.y : sizes.z;
}
extern "C" size_t __ockl_get_local_id(unsigned axis) { return fake_part(threadIdx, axis); }
extern "C" size_t __ockl_get_group_id(unsigned axis) { return fake_part(blockIdx, axis); }
extern "C" size_t __ockl_get_local_size(unsigned axis) { return fake_part(blockDim, axis); }

#define FAKE_FUNCTION(name) \
  extern "C" float __ocml_##name##_f32(float x) { return name(x); } \
  extern "C" double __ocml_##name##_f64(double x) { return name(x); } \
  extern "C" _Float16 __ocml_##name##_f16(_Float16 x) { return name((float)x); }
FAKE_FUNCTION(exp2)
FAKE_FUNCTION(log2)
FAKE_FUNCTION(sqrt)
FAKE_FUNCTION(sin)
FAKE_FUNCTION(trunc)
extern "C" float __ocml_fmax_f32(float x, float y) { return fmax(x, y); }
extern "C" double __ocml_fmax_f64(double x, double y) { return fmax(x, y); }
extern "C" _Float16 __ocml_fmax_f16(_Float16 x, _Float16 y) { return fmax((float)x, (float)y); }
