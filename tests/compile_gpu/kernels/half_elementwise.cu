#define INFINITY (__int_as_float(0x7f800000))
#define NAN (__int_as_float(0x7fffffff))
#include <cuda_fp16.h>
struct __align__(8) half4 { half x, y, z, w; }; __device__ half4 make_half4(half x, half y, half z, half w) { half4 r={x, y, z, w}; return r; }
extern "C" __global__ void __launch_bounds__(32) E_8192_32_4n1(half* data0_1048576, half* data1_1048576) {
  int gidx0 = blockIdx.x; /* 8192 */
  int lidx0 = threadIdx.x; /* 32 */
  int alu0 = ((gidx0<<7)+(lidx0<<2));
  half4 val0 = (*((half4*)((data1_1048576+alu0))));
  *((half4*)((data0_1048576+alu0))) = make_half4(hexp2((val0.x*((half)(2.0f)))),hexp2((val0.y*((half)(2.0f)))),hexp2((val0.z*((half)(2.0f)))),hexp2((val0.w*((half)(2.0f)))));
}