typedef float float4 __attribute__((aligned(16),vector_size(16)));
void r_32_16_4(float* restrict data0_32, float* restrict data1_2048) {
  float acc0[1];
  for (int ridx0 = 0; ridx0 < 32; ridx0++) {
    *(acc0+0) = 0.0f;
    for (int ridx1001 = 0; ridx1001 < 16; ridx1001++) {
      float4 val0 = (*((float4*)((data1_2048+((ridx0<<6)+(ridx1001<<2))))));
      *(acc0+0) = ((*(acc0+0))+val0[0]+val0[1]+val0[2]+val0[3]);
    }
    *(data0_32+ridx0) = (*(acc0+0));
  }
}
