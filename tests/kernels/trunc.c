typedef float float4 __attribute__((aligned(16),vector_size(16)));
void E_16_4n6(float* restrict data0_64, float* restrict data1_64) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<2);
    float4 val0 = (*((float4*)((data1_64+alu0))));
    *((float4*)((data0_64+alu0))) = (float4){__builtin_truncf(val0[0]),__builtin_truncf(val0[1]),__builtin_truncf(val0[2]),__builtin_truncf(val0[3])};
  }
}
