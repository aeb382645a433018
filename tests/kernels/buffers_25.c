typedef float float4 __attribute__((aligned(16),vector_size(16)));
void E_24_4(float* restrict data0_96, float* restrict data1_4, float* restrict data2_4, float* restrict data3_4, float* restrict data4_4, float* restrict data5_4, float* restrict data6_4, float* restrict data7_4, float* restrict data8_4, float* restrict data9_4, float* restrict data10_4, float* restrict data11_4, float* restrict data12_4, float* restrict data13_4, float* restrict data14_4, float* restrict data15_4, float* restrict data16_4, float* restrict data17_4, float* restrict data18_4, float* restrict data19_4, float* restrict data20_4, float* restrict data21_4, float* restrict data22_4, float* restrict data23_4, float* restrict data24_4) {
  float4 cast0 = (float4){0.0f,0.0f,0.0f,0.0f};
  for (int ridx0 = 0; ridx0 < 24; ridx0++) {
    float4 val0 = ((ridx0<1)?*((float4*)((data1_4+0))):cast0);
    float4 val1 = ((22<ridx0)?*((float4*)((data24_4+0))):cast0);
    float4 val2 = ((ridx0==1)?*((float4*)((data2_4+0))):cast0);
    float4 val3 = ((ridx0==2)?*((float4*)((data3_4+0))):cast0);
    float4 val4 = ((ridx0==3)?*((float4*)((data4_4+0))):cast0);
    float4 val5 = ((ridx0==4)?*((float4*)((data5_4+0))):cast0);
    float4 val6 = ((ridx0==5)?*((float4*)((data6_4+0))):cast0);
    float4 val7 = ((ridx0==6)?*((float4*)((data7_4+0))):cast0);
    float4 val8 = ((ridx0==7)?*((float4*)((data8_4+0))):cast0);
    float4 val9 = ((ridx0==8)?*((float4*)((data9_4+0))):cast0);
    float4 val10 = ((ridx0==9)?*((float4*)((data10_4+0))):cast0);
    float4 val11 = ((ridx0==10)?*((float4*)((data11_4+0))):cast0);
    float4 val12 = ((ridx0==11)?*((float4*)((data12_4+0))):cast0);
    float4 val13 = ((ridx0==12)?*((float4*)((data13_4+0))):cast0);
    float4 val14 = ((ridx0==13)?*((float4*)((data14_4+0))):cast0);
    float4 val15 = ((ridx0==14)?*((float4*)((data15_4+0))):cast0);
    float4 val16 = ((ridx0==15)?*((float4*)((data16_4+0))):cast0);
    float4 val17 = ((ridx0==16)?*((float4*)((data17_4+0))):cast0);
    float4 val18 = ((ridx0==17)?*((float4*)((data18_4+0))):cast0);
    float4 val19 = ((ridx0==18)?*((float4*)((data19_4+0))):cast0);
    float4 val20 = ((ridx0==19)?*((float4*)((data20_4+0))):cast0);
    float4 val21 = ((ridx0==20)?*((float4*)((data21_4+0))):cast0);
    float4 val22 = ((ridx0==21)?*((float4*)((data22_4+0))):cast0);
    float4 val23 = ((ridx0==22)?*((float4*)((data23_4+0))):cast0);
    *((float4*)((data0_96+(ridx0<<2)))) = (float4){(val0[0]+val2[0]+val3[0]+val4[0]+val5[0]+val6[0]+val7[0]+val8[0]+val9[0]+val10[0]+val11[0]+val12[0]+val13[0]+val14[0]+val15[0]+val16[0]+val17[0]+val18[0]+val19[0]+val20[0]+val21[0]+val22[0]+val23[0]+val1[0]),(val0[1]+val2[1]+val3[1]+val4[1]+val5[1]+val6[1]+val7[1]+val8[1]+val9[1]+val10[1]+val11[1]+val12[1]+val13[1]+val14[1]+val15[1]+val16[1]+val17[1]+val18[1]+val19[1]+val20[1]+val21[1]+val22[1]+val23[1]+val1[1]),(val0[2]+val2[2]+val3[2]+val4[2]+val5[2]+val6[2]+val7[2]+val8[2]+val9[2]+val10[2]+val11[2]+val12[2]+val13[2]+val14[2]+val15[2]+val16[2]+val17[2]+val18[2]+val19[2]+val20[2]+val21[2]+val22[2]+val23[2]+val1[2]),(val0[3]+val2[3]+val3[3]+val4[3]+val5[3]+val6[3]+val7[3]+val8[3]+val9[3]+val10[3]+val11[3]+val12[3]+val13[3]+val14[3]+val15[3]+val16[3]+val17[3]+val18[3]+val19[3]+val20[3]+val21[3]+val22[3]+val23[3]+val1[3])};
  }
}
