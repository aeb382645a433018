#define INFINITY (__int_as_float(0x7f800000))
#define NAN (__int_as_float(0x7fffffff))
#include <cuda_bf16.h>
extern "C" __global__ void __launch_bounds__(32) E_8192_32_4n2(nv_bfloat16* data0_1048576, nv_bfloat16* data1_1048576) {
  int gidx0 = blockIdx.x; /* 8192 */
  int lidx0 = threadIdx.x; /* 32 */
  int alu0 = ((gidx0<<7)+(lidx0<<2));
  nv_bfloat16 val0 = (*(data1_1048576+alu0));
  int alu1 = (alu0+1);
  nv_bfloat16 val1 = (*(data1_1048576+alu1));
  int alu2 = (alu0+2);
  nv_bfloat16 val2 = (*(data1_1048576+alu2));
  int alu3 = (alu0+3);
  nv_bfloat16 val3 = (*(data1_1048576+alu3));
  *(data0_1048576+alu1) = hexp2((val1*((nv_bfloat16)(2.0f))));
  *(data0_1048576+alu2) = hexp2((val2*((nv_bfloat16)(2.0f))));
  *(data0_1048576+alu3) = hexp2((val3*((nv_bfloat16)(2.0f))));
  *(data0_1048576+alu0) = hexp2((val0*((nv_bfloat16)(2.0f))));
}