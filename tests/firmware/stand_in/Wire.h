// I2C, the controller's side.
#ifndef WIRE_H
#define WIRE_H

#include <Arduino.h>

class TwoWire {
public:
  void begin();
  void end();
  void setClock(uint32_t hz);
  void beginTransmission(uint8_t address);
  size_t write(uint8_t data);
  uint8_t endTransmission(bool stop = true);  // 0: well; 2: nobody at this address; 3: it takes no more
  uint8_t requestFrom(uint8_t address, uint8_t size);
  int available();
  int read();
};

extern TwoWire Wire;

#endif
