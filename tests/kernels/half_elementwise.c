typedef __fp16 __fp164 __attribute__((aligned(8),vector_size(8)));
void E_16_4n10(__fp16* restrict data0_64, __fp16* restrict data1_64, __fp16* restrict data2_64) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<2);
    __fp164 val0 = (*((__fp164*)((data1_64+alu0))));
    __fp164 val1 = (*((__fp164*)((data2_64+alu0))));
    *((__fp164*)((data0_64+alu0))) = (__fp164){(val0[0]+(val1[0]*((__fp16)(2.0f)))),(val0[1]+(val1[1]*((__fp16)(2.0f)))),(val0[2]+(val1[2]*((__fp16)(2.0f)))),(val0[3]+(val1[3]*((__fp16)(2.0f))))};
  }
}
