typedef __fp16 __fp164 __attribute__((aligned(8),vector_size(8)));
void E_16_4n19(double* restrict data0_64, __fp16* restrict data1_64) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<2);
    __fp164 val0 = (*((__fp164*)((data1_64+alu0))));
    *(data0_64+alu0) = ((double)(val0[0]));
    *(data0_64+(alu0+1)) = ((double)(val0[1]));
    *(data0_64+(alu0+2)) = ((double)(val0[2]));
    *(data0_64+(alu0+3)) = ((double)(val0[3]));
  }
}
