// A BME280 as its data sheet describes it. Coefficients of temperature and pressure, and the first values, are those of the
// example that Bosch computes in the data sheet of the BMP280 (chapter 3.12): 25.08 °C and 1006.53 hPa.
#include "../simulation.h"

static struct Bme280 : simulation::Registers {
  Bme280() {
    bytes[0xD0] = 0x60;
    const int calibration[] = {27504, 26435, -1000, 36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000};
    for (int i = 0; i < 12; ++i) {
      bytes[0x88 + 2 * i] = uint8_t(calibration[i]);
      bytes[0x89 + 2 * i] = uint8_t(calibration[i] >> 8);
    }
    const int h1 = 75, h2 = 362, h3 = 0, h4 = 313, h5 = 50, h6 = 30;
    bytes[0xA1] = h1;
    bytes[0xE1] = uint8_t(h2), bytes[0xE2] = uint8_t(h2 >> 8), bytes[0xE3] = h3;
    bytes[0xE4] = uint8_t(h4 >> 4), bytes[0xE5] = uint8_t((h4 & 15) | (h5 & 15) << 4), bytes[0xE6] = uint8_t(h5 >> 4);
    bytes[0xE7] = h6;
    put(0x80000, 0x80000, 0x8000);
  }

  uint8_t out(uint8_t reg) override {
    bool busy = simulation::now_s() < done_s;
    if (reg == 0xF3) return busy ? 0x08 : 0;
    if (!busy && measures) {
      measures = false;
      bytes[0xF4] &= uint8_t(~3);  // asleep again
      int n = count++;
      int t = 519888 + 40 * n, p = 415148 - 16 * n, h = simulation::fault("no-humidity") ? 0x8000 : 27000 + 100 * n;
      put(p, t, h);
      simulation::truth({double(p), double(t), double(h)});  // as in the registers; the test computes the rest
    }
    return bytes[reg];
  }

  void in(uint8_t reg, uint8_t value) override {
    bytes[reg] = value;
    if (reg == 0xF4 && (value & 3) == 1 && !simulation::fault("stuck")) {
      measures = true;
      done_s = simulation::now_s() + 0.0215;
    }
    if (reg == 0xF4 && simulation::fault("stuck")) done_s = 1e9;
  }

  void put(int p, int t, int h) {
    bytes[0xF7] = uint8_t(p >> 12), bytes[0xF8] = uint8_t(p >> 4), bytes[0xF9] = uint8_t(p << 4);
    bytes[0xFA] = uint8_t(t >> 12), bytes[0xFB] = uint8_t(t >> 4), bytes[0xFC] = uint8_t(t << 4);
    bytes[0xFD] = uint8_t(h >> 8), bytes[0xFE] = uint8_t(h);
  }

  bool measures = false;
  double done_s = 0;
  int count = 0;
} sensor;

void plug_in() { simulation::i2c[0x76] = &sensor; }
