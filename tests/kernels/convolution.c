
void r_4_6_6_4_3_3(float* restrict data0_144, float* restrict data1_256, float* restrict data2_144) {
  float acc0[1];
  for (int ridx0 = 0; ridx0 < 4; ridx0++) {
    int alu0 = (ridx0*36);
    for (int ridx1 = 0; ridx1 < 6; ridx1++) {
      for (int ridx2 = 0; ridx2 < 6; ridx2++) {
        *(acc0+0) = 0.0f;
        for (int ridx1003 = 0; ridx1003 < 4; ridx1003++) {
          int alu2 = (alu0+(ridx1003*9));
          float val0 = (*(data2_144+alu2));
          float val1 = (*(data2_144+(alu2+1)));
          float val2 = (*(data2_144+(alu2+2)));
          float val3 = (*(data2_144+(alu2+3)));
          float val4 = (*(data2_144+(alu2+4)));
          float val5 = (*(data2_144+(alu2+5)));
          float val6 = (*(data2_144+(alu2+6)));
          float val7 = (*(data2_144+(alu2+7)));
          float val8 = (*(data2_144+(alu2+8)));
          int alu3 = ((ridx1<<3)+ridx2+(ridx1003<<6));
          float val9 = (*(data1_256+alu3));
          float val10 = (*(data1_256+(alu3+1)));
          float val11 = (*(data1_256+(alu3+2)));
          float val12 = (*(data1_256+(alu3+8)));
          float val13 = (*(data1_256+(alu3+9)));
          float val14 = (*(data1_256+(alu3+10)));
          float val15 = (*(data1_256+(alu3+16)));
          float val16 = (*(data1_256+(alu3+17)));
          float val17 = (*(data1_256+(alu3+18)));
          *(acc0+0) = ((*(acc0+0))+(val9*val0)+(val12*val3)+(val15*val6)+(val10*val1)+(val13*val4)+(val16*val7)+(val11*val2)+(val14*val5)+(val17*val8));
        }
        *(data0_144+(alu0+(ridx1*6)+ridx2)) = (*(acc0+0));
      }
    }
  }
}
