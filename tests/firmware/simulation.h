// What a simulated sensor is made of. A file of simulated/ defines plug_in(), which puts its devices on the buses.
#ifndef SIMULATION_H
#define SIMULATION_H

#include <Arduino.h>
#include <SPI.h>

#include <deque>
#include <map>
#include <string>
#include <vector>

namespace simulation {

double now_s();              // since power was switched on
bool fault(const char *of);  // is this fault on now? Named on the command line as NAME@FROM-TO, in seconds
void truth(const std::vector<double> &values);  // a sample as the sensor took it, for the test to compare with

// On I2C or SPI, by registers. `out` is called for each byte that is read, `in` for each that is written.
struct Registers {
  virtual ~Registers() {}
  virtual uint8_t out(uint8_t reg) { return bytes[reg]; }
  virtual void in(uint8_t reg, uint8_t value) { bytes[reg] = value; }
  virtual uint8_t next(uint8_t reg) { return uint8_t(reg + 1); }  // of several bytes in a row
  virtual bool present() { return !fault("loose"); }
  uint8_t bytes[256] = {0};
};

struct Spi {
  virtual ~Spi() {}
  virtual void select(const SPISettings &settings) = 0;
  virtual uint8_t transfer(uint8_t data) = 0;
};

// The usual kind: the first byte is the register, with 80 to read it.
struct SpiRegisters : Spi {
  SpiRegisters(Registers &device, uint8_t mode, uint32_t most_hz) : device(device), mode(mode), most_hz(most_hz) {}
  void select(const SPISettings &settings) override;
  uint8_t transfer(uint8_t data) override;
  Registers &device;
  uint8_t mode;
  uint32_t most_hz;
  int command = -1;
};

// On Serial1: gets what is sent to it, and sends.
struct Talker {
  virtual ~Talker() {}
  virtual void hear(uint8_t data) = 0;
  virtual void tick() {}  // now and then
};
void say(const std::string &bytes, double after_s = 0);  // at the baud of Serial1

extern std::map<uint8_t, Registers *> i2c;      // by address
extern std::map<uint8_t, Spi *> spi;            // by the pin that selects it
extern std::map<uint8_t, double (*)()> analog;  // by pin: what its converter reads, in parts of the range
extern std::map<uint8_t, double (*)()> pulses;  // by pin: falling edges so far
extern Talker *talker;

}  // namespace simulation

void plug_in();

#endif
