// Runs a sketch on the host: `PROGRAM SECONDS [NAME@FROM-TO]... [baud=N]` writes what the sketch sends to stdout, and what the
// sensor measured to stderr, a sample a line. Time passes as buses and serial lines need it, two microseconds with each look at
// the clock, and ten with each loop(); so a run is the same every time.
#include "simulation.h"

#include <SPI.h>
#include <Wire.h>
#include <stdio.h>
#include <stdlib.h>

void setup();
void loop();

HardwareSerial Serial(0), Serial1(1);
TwoWire Wire;
SPIClass SPI;

namespace simulation {

std::map<uint8_t, Registers *> i2c;
std::map<uint8_t, Spi *> spi;
std::map<uint8_t, double (*)()> analog;
std::map<uint8_t, double (*)()> pulses;
Talker *talker = nullptr;

static const uint64_t BOOT_US = 4294967296ull - 300000;  // micros() comes to the end of its 32 bits after 0.3 s
static double time_us = 0;
static bool running = false, masked = false;
static struct Fault {
  std::string name;
  double from_s, to_s;
} faults[8];
static int fault_count = 0;
static std::map<uint8_t, void (*)()> handlers;
static std::map<uint8_t, double> handled;

[[noreturn]] static void wrong(const std::string &what) {
  fprintf(stderr, "# %s\n", what.c_str());
  exit(3);
}

static void pass(double us) {
  time_us += us;
  if (masked) return;
  for (auto &handler : handlers) {
    double count = floor(pulses[handler.first]());
    for (; handled[handler.first] < count; ++handled[handler.first]) handler.second();
  }
  if (talker) talker->tick();
}

double now_s() { return time_us * 1e-6; }

bool fault(const char *of) {
  for (int i = 0; i < fault_count; ++i)
    if (faults[i].name == of && faults[i].from_s <= now_s() && now_s() < faults[i].to_s) return true;
  return false;
}

void truth(const std::vector<double> &values) {
  for (size_t i = 0; i < values.size(); ++i) fprintf(stderr, i ? ",%.9g" : "%.9g", values[i]);
  fprintf(stderr, "\n");
}

void SpiRegisters::select(const SPISettings &settings) {
  if (settings.mode != mode || settings.hz > most_hz) wrong("SPI in another mode, or faster, than the sensor can");
  command = -1;
}

uint8_t SpiRegisters::transfer(uint8_t data) {
  if (command < 0) {
    command = data;
    return 0xFF;
  }
  uint8_t reg = command & 0x7F, value = 0xFF;
  if (!device.present()) return 0xFF;
  if (command & 0x80)
    value = device.out(reg);
  else
    device.in(reg, data);
  command = (command & 0x80) | (device.next(reg) & 0x7F);
  return value;
}

// Serial lines: what is sent leaves at the line's speed, and there is room for 63 bytes that wait, as on an Uno.
static const double ROOM = 63;
static double baud[2] = {0, 0}, busy_until_us[2] = {0, 0};
static std::deque<std::pair<double, uint8_t>> heard;  // on Serial1: when, and what

static double byte_us(int line) {
  if (!baud[line]) wrong("Serial before begin()");
  return 10e6 / baud[line];
}

void say(const std::string &bytes, double after_s) {
  double at = time_us + after_s * 1e6;
  if (!heard.empty() && heard.back().first > at) at = heard.back().first;
  for (char one : bytes) heard.push_back({at += byte_us(1), uint8_t(one)});
}

}  // namespace simulation

using namespace simulation;

uint32_t micros() {
  pass(2);
  return uint32_t(BOOT_US + uint64_t(time_us));
}
uint32_t millis() {
  pass(2);
  return uint32_t((BOOT_US + uint64_t(time_us)) / 1000);
}
void delay(uint32_t ms) {
  if (running) wrong("delay() in loop(): samples wait for it");
  pass(1000.0 * ms);
}
void delayMicroseconds(unsigned us) {
  if (running && us > 20) wrong("delayMicroseconds() for more than 20 in loop()");
  pass(us);
}

static std::map<uint8_t, uint8_t> modes;
static Spi *selected = nullptr;
static SPISettings settings(0, 0, 0);
static bool in_transaction = false;

// A sensor that holds SDA low, from a fault `held` on until it has had nine clocks.
static bool held_before = false, held = false;
static int clocks = 0;
static bool is_held() {
  bool now = fault("held");
  if (now && !held_before) held = true, clocks = 0;
  held_before = now;
  return held;
}

void pinMode(uint8_t pin, uint8_t mode) {
  if (pin == SCL && modes[pin] == OUTPUT && mode != OUTPUT && is_held() && ++clocks == 9) held = false;
  modes[pin] = mode;
}
void digitalWrite(uint8_t pin, uint8_t level) {
  if (!spi.count(pin)) return;
  if (level == LOW) {
    if (modes[pin] != OUTPUT) wrong("a select line that is no output");
    if (!in_transaction) wrong("SPI without beginTransaction()");
    selected = spi[pin];
    selected->select(settings);
  } else if (selected == spi[pin]) {
    selected = nullptr;
  }
}
int digitalRead(uint8_t pin) { return pin == SDA && is_held() ? LOW : HIGH; }
static int analog_bits = 10;
void analogReadResolution(int bits) { analog_bits = bits; }
int analogRead(uint8_t pin) {
  pass(20);
  if (!analog.count(pin)) wrong("analogRead() of a pin to which nothing is wired");
  int most = (1 << analog_bits) - 1, read = int(floor(analog[pin]() * (most + 1)));
  return read < 0 ? 0 : read > most ? most : read;
}
void attachInterrupt(uint8_t number, void (*handler)(), int) {
  if (!pulses.count(number)) wrong("attachInterrupt() for a pin to which nothing is wired");
  handlers[number] = handler;
  handled[number] = floor(pulses[number]());
}
void noInterrupts() { masked = true; }
void interrupts() {
  masked = false;
  pass(0);
}

static double other_baud = 0;  // of Serial, whatever the sketch sets
void HardwareSerial::begin(uint32_t rate) { baud[number] = number == 0 && other_baud > 0 ? other_baud : rate; }
int HardwareSerial::availableForWrite() {
  double waits = busy_until_us[number] > time_us ? (busy_until_us[number] - time_us) / byte_us(number) : 0;
  return waits < ROOM ? int(ROOM - waits) : 0;
}
size_t HardwareSerial::write(const uint8_t *data, size_t size) {
  if (running && number == 0 && size > size_t(availableForWrite())) wrong("a write that has to wait");
  for (size_t i = 0; i < size; ++i) {
    if (busy_until_us[number] < time_us) busy_until_us[number] = time_us;
    busy_until_us[number] += byte_us(number);
    if (number == 0) putchar(data[i]);
    else if (talker) talker->hear(data[i]);
  }
  pass(0.5 * double(size));
  return size;
}
int HardwareSerial::available() {
  pass(0.5);
  int count = 0;
  for (auto &one : heard) count += one.first <= time_us;
  return count > 63 ? 63 : count;
}
int HardwareSerial::read() {
  pass(0.5);
  if (heard.empty() || heard.front().first > time_us) return -1;
  int data = heard.front().second;
  heard.pop_front();
  return data;
}

static bool started = false;
static double bit_us = 10;
static int addressed = -1, reg = -1;
static std::deque<uint8_t> received;
static uint8_t registers[128];  // where each device reads next
static std::vector<uint8_t> sent;

void TwoWire::begin() { started = true; }
void TwoWire::end() {
  if (!started) wrong("Wire.end() before begin()");
  started = false;
}
void TwoWire::setClock(uint32_t hz) { bit_us = 1e6 / hz; }
void TwoWire::beginTransmission(uint8_t address) {
  if (!started) wrong("Wire before begin()");
  addressed = address;
  sent.clear();
}
size_t TwoWire::write(uint8_t data) {
  sent.push_back(data);
  return 1;
}
uint8_t TwoWire::endTransmission(bool) {
  pass(bit_us * (2 + 9.0 * double(1 + sent.size())));
  Registers *device = i2c.count(uint8_t(addressed)) ? i2c[uint8_t(addressed)] : nullptr;
  if (is_held() || !device || !device->present()) return 2;
  if (sent.empty()) return 0;
  reg = sent[0];
  for (size_t i = 1; i < sent.size(); ++i, reg = device->next(uint8_t(reg))) device->in(uint8_t(reg), sent[i]);
  registers[addressed & 127] = uint8_t(reg);
  return 0;
}
uint8_t TwoWire::requestFrom(uint8_t address, uint8_t size) {
  if (size > 32) wrong("more than 32 bytes at once over I2C");
  received.clear();
  pass(bit_us * 11);
  Registers *device = i2c.count(address) ? i2c[address] : nullptr;
  if (is_held() || !device || !device->present()) return 0;
  uint8_t &at = registers[address & 127];
  for (int i = 0; i < size; ++i, at = device->next(at)) received.push_back(device->out(at));
  pass(bit_us * 9 * size);
  return size;
}
int TwoWire::available() { return int(received.size()); }
int TwoWire::read() {
  if (received.empty()) return -1;
  int data = received.front();
  received.pop_front();
  return data;
}

void SPIClass::begin() {}
void SPIClass::beginTransaction(SPISettings wanted) {
  settings = wanted;
  in_transaction = true;
}
void SPIClass::endTransaction() { in_transaction = false; }
uint8_t SPIClass::transfer(uint8_t data) {
  if (!in_transaction) wrong("SPI without beginTransaction()");
  pass(8e6 / settings.hz);
  return selected ? selected->transfer(data) : 0xFF;
}
void SPIClass::transfer(void *data, size_t size) {
  for (size_t i = 0; i < size; ++i) static_cast<uint8_t *>(data)[i] = transfer(static_cast<uint8_t *>(data)[i]);
}

int main(int count, char **arguments) {
  double seconds = count > 1 ? atof(arguments[1]) : 1;
  for (int i = 2; i < count && fault_count < 8; ++i) {
    std::string text = arguments[i];
    if (text.compare(0, 5, "baud=") == 0) {
      other_baud = atof(text.c_str() + 5);
      continue;
    }
    size_t at = text.find('@'), dash = text.find('-', at);
    if (at == std::string::npos || dash == std::string::npos) wrong("a fault is NAME@FROM-TO");
    faults[fault_count++] = {text.substr(0, at), atof(text.c_str() + at + 1), atof(text.c_str() + dash + 1)};
  }
  plug_in();
  setup();
  running = true;
  while (now_s() < seconds) {
    if (fault("stall")) pass(1000);  // something else keeps the processor
    else loop();
    pass(10);
  }
  return 0;
}
