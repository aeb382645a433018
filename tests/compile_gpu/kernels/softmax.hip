#define INFINITY (__builtin_inff())
#define NAN (__builtin_nanf(""))
typedef long unsigned int size_t;
#define half _Float16
extern "C" __attribute__((device, const)) size_t __ockl_get_local_id(unsigned int);
extern "C" __attribute__((device, const)) size_t __ockl_get_group_id(unsigned int);
extern "C" __attribute__((device, const)) size_t __ockl_get_local_size(unsigned int);
extern "C" __attribute__((device, const)) float __ocml_fmax_f32(float, float);
extern "C" __attribute__((device, pure)) float __ocml_exp2_f32(float);
extern "C" __attribute__((device, pure)) float __ocml_log2_f32(float);
extern "C" __attribute__((device, const)) float __ocml_sqrt_f32(float);
extern "C" __attribute__((device)) float __ocml_sin_f32(float);
extern "C" __attribute__((device)) float __ocml_trunc_f32(float);
extern "C" __attribute__((device, const)) double __ocml_fmax_f64(double, double);
extern "C" __attribute__((device, pure)) double __ocml_exp2_f64(double);
extern "C" __attribute__((device, pure)) double __ocml_log2_f64(double);
extern "C" __attribute__((device, const)) double __ocml_sqrt_f64(double);
extern "C" __attribute__((device)) double __ocml_sin_f64(double);
extern "C" __attribute__((device)) double __ocml_trunc_f64(double);
extern "C" __attribute__((device, const)) half __ocml_fmax_f16(half, half);
extern "C" __attribute__((device, pure)) half __ocml_exp2_f16(half);
extern "C" __attribute__((device, pure)) half __ocml_log2_f16(half);
extern "C" __attribute__((device, const)) half __ocml_sqrt_f16(half);
extern "C" __attribute__((device)) half __ocml_sin_f16(half);
extern "C" __attribute__((device)) half __ocml_trunc_f16(half);
extern "C" __attribute__((global)) void __attribute__((amdgpu_flat_work_group_size(1, 16))) r_64_16_64n6(float* data0_64, float* data1_65536) {
  __attribute__((shared, aligned(16)))float temp0[16];
  float acc0[1];
  float acc1[1];
  int gidx0 = __ockl_get_group_id(0); /* 64 */
  int lidx0 = __ockl_get_local_id(0); /* 16 */
  *(acc1+0) = ((float)(-INFINITY));
  *(acc0+0) = ((float)(-INFINITY));
  for (int ridx3002 = 0; ridx3002 < 64; ridx3002++) {
    float val0 = (*(data1_65536+((gidx0<<10)+(lidx0<<6)+ridx3002)));
    float alu2 = (((*(acc0+0))<val0)?val0:(*(acc0+0)));
    *(acc0+0) = alu2;
  }
  *(temp0+lidx0) = (*(acc0+0));
  __builtin_amdgcn_fence(__ATOMIC_RELEASE, "workgroup");__builtin_amdgcn_s_barrier();__builtin_amdgcn_fence(__ATOMIC_ACQUIRE, "workgroup");
  if ((((bool)(lidx0))!=1)) {
    for (int ridx1001 = 0; ridx1001 < 16; ridx1001++) {
      float val1 = (*(temp0+ridx1001));
      float alu8 = (((*(acc1+0))<val1)?val1:(*(acc1+0)));
      *(acc1+0) = alu8;
    }
    *(data0_64+gidx0) = (*(acc1+0));
  }
}