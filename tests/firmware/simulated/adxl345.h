// An ADXL345 as its data sheet (Rev. G) describes it: rate, range and FIFO as they were set.
#include "../simulation.h"

struct Adxl345 : simulation::Registers {
  Adxl345(double hz, double phase, bool tell = true) : hz(hz), phase(phase), tell(tell) {
    bytes[0x00] = 0xE5;
    bytes[0x2C] = 0x0A;
  }

  uint8_t out(uint8_t reg) override {
    run();
    if (reg == 0x30) return uint8_t((overrun ? 0x01 : 0) | (fifo.size() >= (bytes[0x38] & 31u) ? 0x02 : 0) | (fifo.empty() ? 0 : 0x80));
    if (reg == 0x39) return uint8_t(fifo.size());
    if (reg < 0x32 || reg > 0x37) return bytes[reg];
    if (fifo.empty()) return 0;
    uint8_t value = uint8_t(uint16_t(fifo.front().raw[(reg - 0x32) / 2]) >> ((reg & 1) ? 8 : 0));
    if (reg == 0x37) {
      fifo.pop_front();
      overrun = false;
    }
    return value;
  }

  void in(uint8_t reg, uint8_t value) override {
    run();
    bytes[reg] = value;
    if (reg == 0x38 && !(value >> 6)) fifo.clear();
    if (reg == 0x2D) taken = floor(simulation::now_s() * rate());
  }

  double rate() { return 3200.0 / (1 << (15 - (bytes[0x2C] & 15))); }

  // What it measures at a moment, in g: gravity along Z, and a vibration.
  void measure(double t, double g[3]) {
    g[0] = 0.5 * sin(6.283185307179586 * (hz * t + phase));
    g[1] = 0.25 * sin(6.283185307179586 * (2 * hz * t + phase));
    g[2] = 1.0 + (t > 1.0 && t < 1.1 ? 30.0 : 0.1 * sin(6.283185307179586 * (11 * hz * t)));  // a blow beyond its range
  }

  void run() {
    if (!(bytes[0x2D] & 0x08)) return;
    for (; taken + 1 <= simulation::now_s() * rate(); ) {
      taken += 1;
      double g[3];
      measure(taken / rate(), g);
      Sample sample;
      std::vector<double> values;
      double steps = bytes[0x31] & 0x08 ? 256.0 : 256.0 / (1 << (bytes[0x31] & 3));
      double most = (bytes[0x31] & 0x08 ? 512 << (bytes[0x31] & 3) : 512) - 1;
      for (int axis = 0; axis < 3; ++axis) {
        double raw = rint(g[axis] * steps);
        sample.raw[axis] = int16_t(raw > most ? most : raw < -most - 1 ? -most - 1 : raw);
        values.push_back(sample.raw[axis] / steps * 9.80665);
      }
      if (tell) simulation::truth(values);
      fifo.push_back(sample);
      if (fifo.size() > 33) {  // 32, and one in the registers
        fifo.pop_front();
        overrun = true;
      }
    }
  }

  struct Sample {
    int16_t raw[3];
  };
  double hz, phase;
  bool tell, overrun = false;
  double taken = 0;
  std::deque<Sample> fifo;
};
