// An IIS3DWB as its data sheet (DS12569) describes it, on SPI at pin 10: a FIFO of 512 words of a tag and three axes.
#include "../simulation.h"

static struct Iis3dwb : simulation::Registers {
  Iis3dwb() { bytes[0x0F] = 0x7B; }

  uint8_t out(uint8_t reg) override {
    run();
    if (reg == 0x3A) return uint8_t(fifo.size());
    if (reg == 0x3B) {
      uint8_t value = uint8_t((overrun ? 0x48 : 0) | (fifo.size() >> 8 & 3));
      overrun = false;
      return value;
    }
    if (reg < 0x78 || reg > 0x7E) return bytes[reg];
    if (fifo.empty()) return 0;
    const int16_t *raw = fifo.front().raw;
    if (reg == 0x78) {
      other = simulation::fault("other-words");  // of its thermometer, as though that had been asked for
      return (other ? 0x03 : 0x02) << 3;
    }
    uint8_t value = uint8_t(uint16_t(raw[(reg - 0x79) / 2]) >> ((reg & 1) ? 0 : 8));
    if (reg == 0x7E) fifo.pop_front();
    return other ? 0x19 : value;
  }

  void in(uint8_t reg, uint8_t value) override {
    run();
    if (!filling()) taken = floor(simulation::now_s() * RATE);
    bytes[reg] = value;
    if ((bytes[0x0A] & 7) == 0) fifo.clear();
  }

  uint8_t next(uint8_t reg) override { return reg == 0x7E ? 0x78 : uint8_t(reg + 1); }

  bool filling() { return bytes[0x10] >> 5 == 5 && (bytes[0x09] & 15) == 10 && (bytes[0x0A] & 7) == 6; }

  void run() {
    if (!filling()) return;
    const double mg[4] = {0.061, 0.488, 0.122, 0.244};
    for (; taken + 1 <= simulation::now_s() * RATE;) {
      taken += 1;
      double t = taken / RATE, step = mg[bytes[0x10] >> 2 & 3] * 1e-3;
      double g[3] = {5 * sin(20000 * t), 2 * sin(6000 * t + 1), 1 + 0.3 * sin(311 * t)};
      Sample sample;
      std::vector<double> values;
      for (int axis = 0; axis < 3; ++axis) {
        double raw = rint(g[axis] / step);
        sample.raw[axis] = int16_t(raw > 32767 ? 32767 : raw < -32768 ? -32768 : raw);
        values.push_back(sample.raw[axis] * step * 9.80665);
      }
      simulation::truth(values);
      fifo.push_back(sample);
      if (fifo.size() > 512) {
        fifo.pop_front();
        overrun = true;
      }
    }
  }

  struct Sample {
    int16_t raw[3];
  };
  const double RATE = 80000.0 / 3;
  bool overrun = false, other = false;
  double taken = 0;
  std::deque<Sample> fifo;
} sensor;

static simulation::SpiRegisters bus(sensor, SPI_MODE3, 10000000);

void plug_in() { simulation::spi[SS] = &bus; }
