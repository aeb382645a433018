typedef __fp16 __fp164 __attribute__((aligned(8),vector_size(8)));
void r_16_16_16n1(__fp16* restrict data0_256, __fp16* restrict data1_256, __fp16* restrict data2_256) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<4);
    __fp164 val0 = (*((__fp164*)((data1_256+alu0))));
    __fp164 val1 = (*((__fp164*)((data1_256+(alu0+4)))));
    __fp164 val2 = (*((__fp164*)((data1_256+(alu0+8)))));
    __fp164 val3 = (*((__fp164*)((data1_256+(alu0+12)))));
    for (int ridx1 = 0; ridx1 < 16; ridx1++) {
      __fp16 val4 = (*(data2_256+ridx1));
      __fp16 val5 = (*(data2_256+(ridx1+16)));
      __fp16 val6 = (*(data2_256+(ridx1+32)));
      __fp16 val7 = (*(data2_256+(ridx1+48)));
      __fp16 val8 = (*(data2_256+(ridx1+64)));
      __fp16 val9 = (*(data2_256+(ridx1+80)));
      __fp16 val10 = (*(data2_256+(ridx1+96)));
      __fp16 val11 = (*(data2_256+(ridx1+112)));
      __fp16 val12 = (*(data2_256+(ridx1+128)));
      __fp16 val13 = (*(data2_256+(ridx1+144)));
      __fp16 val14 = (*(data2_256+(ridx1+160)));
      __fp16 val15 = (*(data2_256+(ridx1+176)));
      __fp16 val16 = (*(data2_256+(ridx1+192)));
      __fp16 val17 = (*(data2_256+(ridx1+208)));
      __fp16 val18 = (*(data2_256+(ridx1+224)));
      __fp16 val19 = (*(data2_256+(ridx1+240)));
      *(data0_256+(alu0+ridx1)) = ((__fp16)((((float)((val0[0]*val4)))+((float)((val0[1]*val5)))+((float)((val0[2]*val6)))+((float)((val0[3]*val7)))+((float)((val1[0]*val8)))+((float)((val1[1]*val9)))+((float)((val1[2]*val10)))+((float)((val1[3]*val11)))+((float)((val2[0]*val12)))+((float)((val2[1]*val13)))+((float)((val2[2]*val14)))+((float)((val2[3]*val15)))+((float)((val3[0]*val16)))+((float)((val3[1]*val17)))+((float)((val3[2]*val18)))+((float)((val3[3]*val19))))));
    }
  }
}
