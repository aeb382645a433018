typedef float float4 __attribute__((aligned(16),vector_size(16)));
void r_16_16_16(float* restrict data0_256, float* restrict data1_256, float* restrict data2_256) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<4);
    float4 val0 = (*((float4*)((data1_256+alu0))));
    float4 val1 = (*((float4*)((data1_256+(alu0+4)))));
    float4 val2 = (*((float4*)((data1_256+(alu0+8)))));
    float4 val3 = (*((float4*)((data1_256+(alu0+12)))));
    for (int ridx1 = 0; ridx1 < 16; ridx1++) {
      float val4 = (*(data2_256+ridx1));
      float val5 = (*(data2_256+(ridx1+16)));
      float val6 = (*(data2_256+(ridx1+32)));
      float val7 = (*(data2_256+(ridx1+48)));
      float val8 = (*(data2_256+(ridx1+64)));
      float val9 = (*(data2_256+(ridx1+80)));
      float val10 = (*(data2_256+(ridx1+96)));
      float val11 = (*(data2_256+(ridx1+112)));
      float val12 = (*(data2_256+(ridx1+128)));
      float val13 = (*(data2_256+(ridx1+144)));
      float val14 = (*(data2_256+(ridx1+160)));
      float val15 = (*(data2_256+(ridx1+176)));
      float val16 = (*(data2_256+(ridx1+192)));
      float val17 = (*(data2_256+(ridx1+208)));
      float val18 = (*(data2_256+(ridx1+224)));
      float val19 = (*(data2_256+(ridx1+240)));
      *(data0_256+(alu0+ridx1)) = ((val0[0]*val4)+(val0[1]*val5)+(val0[2]*val6)+(val0[3]*val7)+(val1[0]*val8)+(val1[1]*val9)+(val1[2]*val10)+(val1[3]*val11)+(val2[0]*val12)+(val2[1]*val13)+(val2[2]*val14)+(val2[3]*val15)+(val3[0]*val16)+(val3[1]*val17)+(val3[2]*val18)+(val3[3]*val19));
    }
  }
}
