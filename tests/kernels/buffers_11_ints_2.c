
void E_i_j(float* restrict data0_100, float* restrict data1_100, float* restrict data2_100, float* restrict data3_100, float* restrict data4_100, float* restrict data5_100, float* restrict data6_100, float* restrict data7_100, float* restrict data8_100, float* restrict data9_1, float* restrict data10_1, const int i, const int j) {
  float val0 = (*(data9_1+0));
  float val1 = (*(data10_1+0));
  for (int ridx0 = 0; ridx0 < i; ridx0++) {
    for (int ridx1 = 0; ridx1 < j; ridx1++) {
      int alu0 = ((ridx0*10)+ridx1);
      float val2 = (*(data1_100+alu0));
      float val3 = (*(data2_100+alu0));
      float val4 = (*(data3_100+alu0));
      float val5 = (*(data4_100+alu0));
      float val6 = (*(data5_100+alu0));
      float val7 = (*(data6_100+alu0));
      float val8 = (*(data7_100+alu0));
      float val9 = (*(data8_100+alu0));
      *(data0_100+((j*ridx0)+ridx1)) = ((val2+val3+val4+val5+val6+val7+val8+val9)*val0*val1);
    }
  }
}
