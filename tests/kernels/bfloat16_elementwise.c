
void E_16_4n25(__bf16* restrict data0_64, __bf16* restrict data1_64, __bf16* restrict data2_64) {
  for (int ridx0 = 0; ridx0 < 16; ridx0++) {
    int alu0 = (ridx0<<2);
    __bf16 val0 = (*(data1_64+alu0));
    __bf16 val1 = (*(data2_64+alu0));
    int alu1 = (alu0+1);
    __bf16 val2 = (*(data1_64+alu1));
    __bf16 val3 = (*(data2_64+alu1));
    int alu2 = (alu0+2);
    __bf16 val4 = (*(data1_64+alu2));
    __bf16 val5 = (*(data2_64+alu2));
    int alu3 = (alu0+3);
    __bf16 val6 = (*(data1_64+alu3));
    __bf16 val7 = (*(data2_64+alu3));
    *(data0_64+alu1) = (val2+(val3*((__bf16)(2.0f))));
    *(data0_64+alu2) = (val4+(val5*((__bf16)(2.0f))));
    *(data0_64+alu3) = (val6+(val7*((__bf16)(2.0f))));
    *(data0_64+alu0) = (val0+(val1*((__bf16)(2.0f))));
  }
}
