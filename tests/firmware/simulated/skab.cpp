// Two ADXL345, a MAX31855, a flow meter and four voltages, that know what they show.
#include "adxl345.h"

static Adxl345 motor(20, 0.1, false), pump(33, 0.4, false);

static struct Max31855 : simulation::Spi {
  void select(const SPISettings &settings) override {
    at = 0;
    int quarters = simulation::fault("open") ? 0 : int(rint((22.5 + simulation::now_s()) * 4));
    word = uint32_t(quarters) << 18 | (simulation::fault("open") ? 1u << 16 | 1 : 0) | 23u << 8;
    if (settings.mode != SPI_MODE0 || settings.hz > 5000000) word = 0;
  }
  uint8_t transfer(uint8_t) override { return uint8_t(word >> (24 - 8 * (at++ & 3))); }
  int at = 0;
  uint32_t word = 0;
} thermocouple;

static double mains(double volts_rms) { return (1.65 + volts_rms * sqrt(2.0) * sin(314.159265358979 * simulation::now_s())) / 3.3; }
static double current() { return mains(2.4 / 30); }
static double voltage() { return mains(230.0 / 311); }
static double pressure() { return (0.5 + 4.0 * 2.5 / 10) / 1.5 / 3.3; }  // 2.5 bar
static double ntc() {                                                   // 60 °C
  if (simulation::fault("short")) return 0;
  double ohm = 10000 * exp(3950 * (1 / 333.15 - 1 / 298.15));
  return ohm / (ohm + 10000);
}
static double flow() { return simulation::now_s() * 32 * 450 / 60; }  // 32 l/min

void plug_in() {
  simulation::i2c[0x53] = &motor;
  simulation::i2c[0x1D] = &pump;
  simulation::spi[10] = &thermocouple;
  simulation::analog[A0] = pressure;
  simulation::analog[A1] = ntc;
  simulation::analog[A2] = current;
  simulation::analog[A3] = voltage;
  simulation::pulses[2] = flow;
}
