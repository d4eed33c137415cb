// An MPU-6050 as its register map (rev. 4.2) describes it: asleep at first, a FIFO of 1024 bytes that runs over.
#include "../simulation.h"

static struct Mpu6050 : simulation::Registers {
  Mpu6050() {
    bytes[0x75] = 0x68;
    bytes[0x6B] = 0x40;  // SLEEP
  }

  uint8_t out(uint8_t reg) override {
    run();
    uint8_t value = bytes[reg];
    if (reg == 0x3A) bytes[reg] = 0;  // reading clears it
    if (reg == 0x72) value = uint8_t(fifo.size() >> 8);
    if (reg == 0x73) value = uint8_t(fifo.size());
    if (reg == 0x74) {
      value = fifo.empty() ? 0xFF : fifo.front();
      if (!fifo.empty()) fifo.pop_front();
    }
    return value;
  }

  void in(uint8_t reg, uint8_t value) override {
    run();
    if (reg == 0x6A && (value & 0x04)) {
      if (!(bytes[0x6A] & 0x40)) fifo.clear();  // only while it is off
      value &= uint8_t(~0x04);
    }
    if (!filling()) taken = floor(simulation::now_s() * rate());
    bytes[reg] = value;
  }

  uint8_t next(uint8_t reg) override { return reg == 0x74 ? reg : uint8_t(reg + 1); }

  bool filling() { return !(bytes[0x6B] & 0x40) && (bytes[0x6A] & 0x40) && (bytes[0x23] & 0x08); }
  double rate() { return (bytes[0x1A] & 7 ? 1000.0 : 8000.0) / (1 + bytes[0x19]); }

  void run() {
    if (!filling()) {
      taken = floor(simulation::now_s() * rate());
      return;
    }
    for (; taken + 1 <= simulation::now_s() * rate();) {
      taken += 1;
      double t = taken / rate(), steps = 16384 >> (bytes[0x1C] >> 3 & 3);
      double g[3] = {0.5 * sin(50 * t), t > 1.0 && t < 1.1 ? -20 : 0.25 * cos(90 * t), 1 + 0.1 * sin(300 * t)};
      std::vector<double> values;
      for (double one : g) {
        double raw = rint(one * steps);
        int16_t word = int16_t(raw > 32767 ? 32767 : raw < -32768 ? -32768 : raw);
        values.push_back((word < -32767 ? -32767 : word) / steps * 9.80665);
        put(uint8_t(uint16_t(word) >> 8));
        put(uint8_t(word));
      }
      simulation::truth(values);
    }
  }

  void put(uint8_t value) {
    fifo.push_back(value);
    if (fifo.size() > 1024) {
      fifo.pop_front();
      bytes[0x3A] |= 0x10;
    }
  }

  double taken = 0;
  std::deque<uint8_t> fifo;
} sensor;

void plug_in() { simulation::i2c[0x68] = &sensor; }
