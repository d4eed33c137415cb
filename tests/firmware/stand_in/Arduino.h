// As much of the Arduino API as the sketches use, in the words of its reference. With it they compile for Arm; the functions
// are in simulation.cpp, which runs them on the host against simulated sensors.
#ifndef ARDUINO_H
#define ARDUINO_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint8_t byte;
enum { LOW, HIGH };
enum { INPUT, OUTPUT, INPUT_PULLUP };
enum { CHANGE = 1, FALLING = 2, RISING = 3 };
enum { A0 = 14, A1, A2, A3, A4, A5 };
enum { SS = 10, SDA = 18, SCL = 19 };

uint32_t micros();
uint32_t millis();
void delay(uint32_t ms);  // only in setup(): the simulation ends a sketch that sleeps in loop()
void delayMicroseconds(unsigned us);
void pinMode(uint8_t pin, uint8_t mode);
void digitalWrite(uint8_t pin, uint8_t level);
int digitalRead(uint8_t pin);
int analogRead(uint8_t pin);
void analogReadResolution(int bits);
void attachInterrupt(uint8_t number, void (*handler)(), int mode);
inline uint8_t digitalPinToInterrupt(uint8_t pin) { return pin; }
void noInterrupts();
void interrupts();

#if defined(ARDUINO_ARCH_ESP32)
#define SERIAL_8N1 0x800001c
#endif

class HardwareSerial {
public:
  explicit HardwareSerial(int number) : number(number) {}
  void begin(uint32_t baud);
#if defined(ARDUINO_ARCH_ESP32)
  void begin(uint32_t baud, uint32_t config, int8_t rx, int8_t tx);
#endif
  int availableForWrite();
  size_t write(const uint8_t *data, size_t size);
  size_t write(uint8_t data) { return write(&data, 1); }
  int available();
  int read();
  explicit operator bool() { return true; }

private:
  int number;
};

extern HardwareSerial Serial, Serial1;

#endif
