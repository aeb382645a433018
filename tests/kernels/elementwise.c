typedef float float4 __attribute__((aligned(16),vector_size(16)));
void E_16_4(float* restrict data0_64, float* restrict data1_64, float* restrict data2_64) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<2);
    float4 val0 = (*((float4*)((data1_64+alu0))));
    float4 val1 = (*((float4*)((data2_64+alu0))));
    float alu1 = ((val0[0]*2.0f)+val1[0]);
    float alu2 = ((val0[1]*2.0f)+val1[1]);
    float alu3 = ((val0[2]*2.0f)+val1[2]);
    float alu4 = ((val0[3]*2.0f)+val1[3]);
    float alu5 = ((0.0f<alu1)?alu1:0.0f);
    float alu6 = ((0.0f<alu2)?alu2:0.0f);
    float alu7 = ((0.0f<alu3)?alu3:0.0f);
    float alu8 = ((0.0f<alu4)?alu4:0.0f);
    *((float4*)((data0_64+alu0))) = (float4){alu5,alu6,alu7,alu8};
  }
}
