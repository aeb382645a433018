#define INFINITY (__int_as_float(0x7f800000))
#define NAN (__int_as_float(0x7fffffff))
extern "C" __global__ void __launch_bounds__(16) r_64_16_64(float* data0_64, float* data1_65536) {
  __shared__ __align__(16) float temp0[16];
  float acc0[1];
  float acc1[1];
  int gidx0 = blockIdx.x; /* 64 */
  int lidx0 = threadIdx.x; /* 16 */
  *(acc1+0) = ((float)(-INFINITY));
  *(acc0+0) = ((float)(-INFINITY));
  for (int ridx3002 = 0; ridx3002 < 64; ridx3002++) {
    float val0 = (*(data1_65536+((gidx0<<10)+(lidx0<<6)+ridx3002)));
    float alu2 = (((*(acc0+0))<val0)?val0:(*(acc0+0)));
    *(acc0+0) = alu2;
  }
  *(temp0+lidx0) = (*(acc0+0));
  __syncthreads();
  if ((((bool)(lidx0))!=1)) {
    for (int ridx1001 = 0; ridx1001 < 16; ridx1001++) {
      float val1 = (*(temp0+ridx1001));
      float alu8 = (((*(acc1+0))<val1)?val1:(*(acc1+0)));
      *(acc1+0) = alu8;
    }
    *(data0_64+gidx0) = (*(acc1+0));
  }
}