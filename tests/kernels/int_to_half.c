typedef __fp16 __fp164 __attribute__((aligned(8),vector_size(8)));
void E_16_4n123(__fp16* restrict data0_64, int* restrict data1_64) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<2);
    int val0 = (*(data1_64+alu0));
    int val1 = (*(data1_64+(alu0+1)));
    int val2 = (*(data1_64+(alu0+2)));
    int val3 = (*(data1_64+(alu0+3)));
    *((__fp164*)((data0_64+alu0))) = (__fp164){((__fp16)(val0)),((__fp16)(val1)),((__fp16)(val2)),((__fp16)(val3))};
  }
}
